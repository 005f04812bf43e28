# docker build --tag defaug .                              for processors
# docker build --tag defaug --build-arg DEVICE=cuda .      for NVIDIA GPUs (docker run --gpus all …)
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
ARG DEVICE=cpu
COPY --chown=reader . .
RUN case "$DEVICE" in \
      cpu) make install PIP_OPTIONS="--no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu" ;; \
      cuda) make install PIP_OPTIONS="--no-cache-dir" ;; \
      *) echo "DEVICE=$DEVICE is neither cpu nor cuda" >&2; exit 1 ;; \
    esac
EXPOSE 8888
CMD [".venv/bin/python", "-m", "jupyter", "lab", "--ip=0.0.0.0", "--no-browser"]
