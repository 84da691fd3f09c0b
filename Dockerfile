# The images of step-csi (the last stage) and of step-csi-reload (target reload).
# `make image` builds both, also without a registry.
ARG BASE=docker.io/library/golang:1.26
FROM --platform=$BUILDPLATFORM ${BASE} AS build
ARG GOPROXY
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY driver driver
COPY issuer issuer
# One ARG per line: buildah 1.28 warns about a second one.
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=devel
ARG SOURCE_DATE_EPOCH=0
# No path, no time and no git state: the same source gives the same bytes.
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -o /out/ \
    -trimpath -buildvcs=false -tags nobadger,nobbolt,nomysql,nopgx \
    -ldflags "-s -w -buildid= -X main.buildVersion=$VERSION" ./cmd/step-csi ./cmd/step-csi-reload && \
    touch -d "@$SOURCE_DATE_EPOCH" /out/step-csi /out/step-csi-reload

# For sidecars, and to copy the program into other images.
FROM scratch AS reload
ARG VERSION=devel
ARG REVISION=unknown
LABEL org.opencontainers.image.title="step-csi-reload" \
      org.opencontainers.image.description="Tells a program to read its certificate again after each renewal" \
      org.opencontainers.image.source="https://github.com/flexstack/step-csi" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /out/step-csi-reload /step-csi-reload
USER 65534:65534
ENTRYPOINT ["/step-csi-reload"]

FROM scratch AS step-csi
ARG VERSION=devel
ARG REVISION=unknown
LABEL org.opencontainers.image.title="step-csi" \
      org.opencontainers.image.description="Kubernetes CSI node plugin: a certificate from step-ca for every pod" \
      org.opencontainers.image.source="https://github.com/flexstack/step-csi" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /out/step-csi /out/step-csi-reload /
# Mounting needs root. The image has no shell.
USER 0:0
ENTRYPOINT ["/step-csi"]
