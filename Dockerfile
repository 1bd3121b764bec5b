# A server for a machine with an NVIDIA GPU: PyTorch with CUDA, this project with its shipped models, nothing of a user's.
#
#   docker build -t vlsm-segmenter .
#   docker run --gpus all --rm -p 127.0.0.1:8000:8000 -e VLSM_TOKEN -v "$HOME/.vlsm-segmenter/models:/models:ro" vlsm-segmenter
#
# VLSM_TOKEN is a secret of 16 or more characters in your environment; without it the server makes one and prints it.
# Published like this, only the machine itself reaches the port; go there from another with `ssh -L 8000:127.0.0.1:8000 BOX`.
FROM python:3.12-slim

WORKDIR /app
# PyTorch by itself, so that a change of the code does not download it again
RUN pip install --no-cache-dir "torch>=2.10"
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY Resources/Models Resources/Models
# editable, as the models lie beside the package
RUN pip install --no-cache-dir --editable ".[serve]" && useradd --create-home server
USER server
ENV VLSM_MODELS=/models
EXPOSE 8000
ENTRYPOINT ["python", "-m", "engine.serve", "--host", "0.0.0.0", "--port", "8000"]
