# The image of this project. `cargo xtask image` builds the binary and then, with it, this file:
#
#     hullworks build -f Dockerfile -o type=oci,dest=hullworks.oci.tar DIR
#
# DIR holds the static binary `hullworks` and nothing else. No stage needs a registry.

FROM scratch AS program
COPY --chmod=755 hullworks /hullworks

# The program lays out its own file tree: there is no shell here that could.
FROM program AS layout
RUN ["/hullworks", "install", "/out"]

FROM scratch
COPY --from=layout /out /
ENV PATH=/usr/bin
LABEL org.opencontainers.image.title="hullworks" \
      org.opencontainers.image.description="Builds container images where the cluster already is" \
      org.opencontainers.image.source="https://github.com/hullworks/hullworks" \
      org.opencontainers.image.licenses="Apache-2.0"
VOLUME /var/lib/buildkit
ENTRYPOINT ["/usr/bin/hullworks"]
CMD ["--help"]
