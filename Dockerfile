# The image of step-csi. `make image` builds it, also without a registry.
ARG BASE=docker.io/library/golang:1.26
FROM --platform=$BUILDPLATFORM ${BASE} AS build
ARG GOPROXY
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd/step-csi cmd/step-csi
COPY driver driver
COPY issuer issuer
# One a line: buildah 1.28 warns about the second of a line.
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=devel
ARG SOURCE_DATE_EPOCH=0
# Nothing of the place or the time goes in: the same source gives the same bytes.
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -o /out/step-csi \
    -trimpath -buildvcs=false -tags nobadger,nobbolt,nomysql,nopgx \
    -ldflags "-s -w -buildid= -X main.buildVersion=$VERSION" ./cmd/step-csi && \
    touch -d "@$SOURCE_DATE_EPOCH" /out/step-csi

FROM scratch
ARG VERSION=devel
ARG REVISION=unknown
LABEL org.opencontainers.image.title="step-csi" \
      org.opencontainers.image.description="Kubernetes CSI node plugin: a certificate from step-ca for every pod" \
      org.opencontainers.image.source="https://github.com/flexstack/step-csi" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /out/step-csi /step-csi
# Root, since mounting needs it. There is no shell to get into.
USER 0:0
ENTRYPOINT ["/step-csi"]
