# MyLLM on a CPU. To train on a text of the present folder, with the results in that folder:
#   docker build -t myllm .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" myllm train novel.txt
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1
WORKDIR /src

# First, and from PyTorch's own index: the build without gigabytes of CUDA packages. It stays in
# Docker's cache as long as its version does.
COPY requirements.txt ./
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' requirements.txt)"

COPY pyproject.toml README.md LICENSE ./
COPY myllm ./myllm
RUN pip install --no-cache-dir .

RUN useradd --uid 1000 myllm \
    && mkdir /work \
    && chown myllm /work
# Libraries keep their caches here; whoever --user names can write there, too.
ENV HOME=/tmp
USER myllm
WORKDIR /work
VOLUME /work
ENTRYPOINT ["myllm"]
CMD ["--help"]
