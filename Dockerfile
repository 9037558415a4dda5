FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src && useradd --create-home vitnp
USER vitnp
ENTRYPOINT ["vitnp"]
