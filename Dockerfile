# docker build --tag defaug .                              with PyTorch's default wheels (docker run --gpus all … uses NVIDIA GPUs)
# docker build --tag defaug --build-arg PIP_OPTIONS="--extra-index-url <address>" .      with PyTorch's CPU wheels, see README.md
# docker run --rm --volume "$PWD/runs:/home/reader/book/runs" defaug make book
# docker run --rm --publish 8888:8888 defaug               JupyterLab; open the address that it prints
FROM python:3.11-slim-bookworm AS system
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git make \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home reader
USER reader
WORKDIR /home/reader/book

FROM system
ARG PIP_OPTIONS=""
COPY --chown=reader . .
RUN make install PIP_OPTIONS="--no-cache-dir $PIP_OPTIONS"
EXPOSE 8888
CMD [".venv/bin/python", "-m", "jupyter", "lab", "--ip=0.0.0.0", "--no-browser"]
