"""What everything rests on: the manifest, images, files, generated pools, and the runs of the protocol."""
