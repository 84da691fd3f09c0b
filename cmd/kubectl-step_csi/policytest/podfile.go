package policytest

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"

	core "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// workload has the fields of a Pod, and of every object that makes pods, that matter here.
type workload struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name         string `json:"name"`
		GenerateName string `json:"generateName"`
		Namespace    string `json:"namespace"`
	} `json:"metadata"`
	Spec  podSpec    `json:"spec"`
	Items []workload `json:"items"` // of a List
}

// podSpec is the spec of a pod, or of an object that makes pods.
type podSpec struct {
	core.PodSpec `json:",inline"`
	Template     struct {
		Spec core.PodSpec `json:"spec"`
	} `json:"template"`
	JobTemplate struct {
		Spec struct {
			Template struct {
				Spec core.PodSpec `json:"spec"`
			} `json:"template"`
		} `json:"spec"`
	} `json:"jobTemplate"`
}

// makesPods tells whether the kind is one of Kubernetes itself, whose fields are known.
func (w workload) makesPods() bool {
	switch w.Kind {
	case "Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "CronJob", "":
		return true
	}
	return strings.HasSuffix(w.Kind, "List")
}

// pod returns the pod's spec and a name such as its controller makes.
func (w workload) pod() (core.PodSpec, string) {
	const hash, suffix = "-6d4b75cb6d", "-x7k2p"
	name := w.Metadata.Name
	switch w.Kind {
	case "Pod":
		if name == "" && w.Metadata.GenerateName != "" {
			name = w.Metadata.GenerateName + suffix[1:]
		}
		return w.Spec.PodSpec, name
	case "CronJob":
		return w.Spec.JobTemplate.Spec.Template.Spec, name + "-28935360" + suffix
	case "StatefulSet":
		name += "-0"
	case "Deployment":
		name += hash + suffix
	default:
		name += suffix
	}
	return w.Spec.Template.Spec, name
}

// readSubjects returns what each volume of the driver in the manifests asks for.
func readSubjects(path, driverName string, stdin io.Reader) ([]subject, error) {
	file, err := readFile(path, stdin)
	if err != nil {
		return nil, err
	}
	var all []subject
	for documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(file))); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		var w workload
		if err := yaml.Unmarshal(document, &w); err != nil && w.makesPods() {
			return nil, err
		} else if err != nil {
			continue // such as a custom resource with other fields of the same names
		}
		for _, w := range append(w.Items, w) {
			all = append(all, w.subjects(driverName)...)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no pod in it has a volume of the driver %s", driverName)
	}
	return all, nil
}

func (w workload) subjects(driverName string) (all []subject) {
	spec, name := w.pod()
	for _, v := range spec.Volumes {
		if v.CSI == nil || v.CSI.Driver != driverName {
			continue
		}
		s := subject{volume: v.Name, attributes: v.CSI.VolumeAttributes}
		s.pod.Namespace, s.pod.Name, s.pod.Node = w.Metadata.Namespace, name, spec.NodeName
		s.pod.ServiceAccount = cmp.Or(spec.ServiceAccountName, spec.DeprecatedServiceAccount)
		all = append(all, s)
	}
	return all
}
