package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"runtime"
)

// object is a JSON object of the OCI image specification,
// https://github.com/opencontainers/image-spec.
type object = map[string]any

const (
	configType   = "application/vnd.oci.image.config.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// archive is an OCI layout in a tar file.
type archive struct {
	*tar.Writer
	written map[string]bool
}

// writeArchive writes all images. They share the layers.
func writeArchive(path string, layers []string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join((&archive{tar.NewWriter(file), map[string]bool{}}).write(layers), file.Close())
}

func (a *archive) write(layers []string) error {
	var described []object
	var ids []string
	for _, layer := range layers {
		descriptor, err := a.blobFile(layerType, layer)
		if err != nil {
			return err
		}
		described = append(described, descriptor)
		ids = append(ids, descriptor["digest"].(string))
	}
	var manifests []object
	for _, i := range images {
		manifest, err := a.image(i, described, ids)
		if err != nil {
			return err
		}
		manifests = append(manifests, manifest)
	}
	index, err := json.Marshal(object{"schemaVersion": 2, "manifests": manifests})
	if err != nil {
		return err
	}
	if err := a.file("index.json", index); err != nil {
		return err
	}
	if err := a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	return a.Close()
}

func (a *archive) image(i image, layers []object, ids []string) (object, error) {
	config, err := a.blob(configType, object{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": object{"User": i.user, "Env": i.env, "Entrypoint": i.entrypoint, "Cmd": i.cmd},
		"rootfs": object{"type": "layers", "diff_ids": ids},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := a.blob(manifestType, object{"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": layers})
	if err != nil {
		return nil, err
	}
	manifest["annotations"] = object{"io.containerd.image.name": i.name, "org.opencontainers.image.ref.name": i.name}
	return manifest, nil
}

func (a *archive) blob(media string, content object) (object, error) {
	encoded, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(encoded)
	return a.add(media, hex.EncodeToString(sum[:]), int64(len(encoded)), bytes.NewReader(encoded))
}

func (a *archive) blobFile(media, path string) (object, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	hash := sha256.New()
	size, err := io.Copy(hash, file)
	if err != nil {
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return a.add(media, hex.EncodeToString(hash.Sum(nil)), size, file)
}

// add writes a blob, unless it is already written, and returns its descriptor.
func (a *archive) add(media, sum string, size int64, content io.Reader) (object, error) {
	descriptor := object{"mediaType": media, "digest": "sha256:" + sum, "size": size}
	if a.written[sum] {
		return descriptor, nil
	}
	a.written[sum] = true
	if err := a.WriteHeader(&tar.Header{Name: "blobs/sha256/" + sum, Mode: 0o644, Size: size}); err != nil {
		return nil, err
	}
	_, err := io.Copy(a, content)
	return descriptor, err
}

func (a *archive) file(name string, content []byte) error {
	if err := a.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := a.Write(content)
	return err
}
