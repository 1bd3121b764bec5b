# A server for a machine with an NVIDIA GPU: PyTorch with CUDA, this project with its shipped models, nothing of a user's.
#
#   docker build -t vlsm-segmenter .
#   docker run --gpus all --rm -p 127.0.0.1:8000:8000 -e VLSM_TOKEN -v "$HOME/.vlsm-segmenter/models:/models:ro" vlsm-segmenter
#
# VLSM_TOKEN is a secret of 16 or more characters in your environment; without it the server makes one and prints it.
# Published like this, only the machine itself reaches the port; go there from another with `ssh -L 8000:127.0.0.1:8000 BOX`.
FROM python:3.12-slim

# PyTorch by itself, so that a change of the code does not download it again
RUN pip install --no-cache-dir "torch>=2.10"
# the package holds the models; what is built on the way stays out of the image
RUN --mount=type=bind,target=/source,readwrite \
    pip install --no-cache-dir "/source[serve]" && useradd --create-home server
USER server
ENV VLSM_MODELS=/models
EXPOSE 8000
ENTRYPOINT ["vlsm-serve", "--host", "0.0.0.0", "--port", "8000"]
