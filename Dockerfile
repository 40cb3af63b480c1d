# CUDA image with everything of requirements.txt. It was written without a Docker engine at hand and has not been built
# or run by its authors; the same steps without Docker are what scripts/setup_env.sh does.
#
#     docker build -t glmkd .
#     docker build -t glmkd --build-arg WITH_APEX=1 .       fused optimizer and layernorm; needs the -devel base image
#     docker run --gpus all --shm-size=8g -it -v "$PWD/../GLM/data:/GLM/data" glmkd
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04
FROM ${CUDA_IMAGE}

ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv git openssh-client pdsh \
    && rm -rf /var/lib/apt/lists/*

# An environment of its own: the distribution's Python refuses packages from outside.
RUN python3 -m venv /venv
ENV PATH=/venv/bin:$PATH PYTHON=/venv/bin/python

WORKDIR /glmkd
COPY requirements.txt .
RUN pip install -r requirements.txt

# apex is compiled from its sources and wants a compiler and nvcc: build with
# --build-arg WITH_APEX=1 --build-arg CUDA_IMAGE=nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04
ARG WITH_APEX=0
RUN if [ "$WITH_APEX" = "1" ]; then \
        apt-get update && apt-get install -y --no-install-recommends build-essential python3-dev \
        && git clone --depth 1 https://github.com/NVIDIA/apex /tmp/apex \
        && APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation /tmp/apex \
        && rm -rf /tmp/apex /var/lib/apt/lists/*; \
    fi

COPY . .
CMD ["bash"]
