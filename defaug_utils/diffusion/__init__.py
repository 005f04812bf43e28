"""Adapters to diffusion models; the only room that imports diffusers or peft."""
