ARG BASE_IMAGE=nvcr.io/nvidia/pytorch:26.09-py3
FROM ${BASE_IMAGE}
WORKDIR /workspace/reste-trainer

# The image's own torch, triton, DALI and apex fit its CUDA: the extra `torch` stays out, the
# image's setuptools builds, and its constraint file holds everything else at its version.
# pip builds in the folder that it is given: not in this one.
COPY pyproject.toml /tmp/requirements/
RUN pip install --no-cache-dir --no-build-isolation --break-system-packages \
      -c /etc/pip/constraint.txt '/tmp/requirements[test,wandb,plot]' && rm -r /tmp/requirements

# Any uid must do, so that files in runs/ belong to the caller. torch asks for the user's name,
# which only USER can give where the uid has no passwd entry.
ENV HOME=/home/trainer USER=trainer PYTHON=python3
COPY . .
RUN chmod -R a+rX . && install -d -m 1777 . data runs "$HOME"
USER 1000:1000
CMD ["make"]
