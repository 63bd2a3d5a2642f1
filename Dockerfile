# MyLLM on a CPU: docker build -t myllm . && docker run -it -v "$PWD:/work" myllm train novel.txt
FROM python:3.12-slim

# The wheels of PyTorch without CUDA: 200 MB instead of gigabytes.
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu

COPY pyproject.toml README.md LICENSE /src/
COPY myllm /src/myllm
RUN pip install --no-cache-dir "/src[gguf]" && rm -r /src

RUN useradd --create-home writer
USER writer
WORKDIR /work
VOLUME /work
ENTRYPOINT ["myllm"]
CMD ["--help"]
