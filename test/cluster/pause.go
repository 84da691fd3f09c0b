package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"
)

// pauseImage holds the namespaces of a pod.
const pauseImage = "localhost/step-csi-cluster/pause:1"

// pause waits for a signal, and reaps ended processes until then.
func pause() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGINT, unix.SIGTERM)
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	for {
		select {
		case <-stop:
			os.Exit(0)
		case <-children:
			for {
				if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		}
	}
}

// writePauseImage writes an OCI archive (https://github.com/opencontainers/image-spec)
// with this program as /pause.
func writePauseImage(path string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	var layer bytes.Buffer
	if err := writeTar(&layer, []file{{"pause", 0o755, self}}); err != nil {
		return err
	}
	type object map[string]any
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": object{"Entrypoint": []string{"/pause"}, "User": "65535:65535"},
		"rootfs": object{"type": "layers", "diff_ids": []string{digest(layer.Bytes())}},
	})
	if err != nil {
		return err
	}
	describe := func(media string, content []byte) object {
		return object{"mediaType": media, "digest": digest(content), "size": len(content)}
	}
	manifest, err := json.Marshal(object{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": describe("application/vnd.oci.image.config.v1+json", config),
		"layers": []object{describe("application/vnd.oci.image.layer.v1.tar", layer.Bytes())},
	})
	if err != nil {
		return err
	}
	reference := describe("application/vnd.oci.image.manifest.v1+json", manifest)
	reference["annotations"] = object{"io.containerd.image.name": pauseImage}
	index, err := json.Marshal(object{"schemaVersion": 2, "manifests": []object{reference}})
	if err != nil {
		return err
	}
	archive, err := os.Create(path)
	if err != nil {
		return err
	}
	defer archive.Close()
	blob := func(content []byte) file {
		return file{"blobs/sha256/" + digest(content)[len("sha256:"):], 0o644, content}
	}
	return writeTar(archive, []file{
		{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", 0o644, index},
		blob(manifest), blob(config), blob(layer.Bytes()),
	})
}

type file struct {
	name    string
	mode    int64
	content []byte
}

func writeTar(w io.Writer, files []file) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		if err := t.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content))}); err != nil {
			return err
		}
		if _, err := t.Write(f.content); err != nil {
			return err
		}
	}
	return t.Close()
}

func digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}
