FROM alpine
RUN x
COPY . /
