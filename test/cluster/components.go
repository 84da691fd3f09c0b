package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// component is a program that runs as long as the node.
type component struct {
	name string
	args []string
}

func components(kubelet string) []component {
	pki := func(name string) string { return filepath.Join(stateDirectory, "pki", name) }
	config := func(name string) string { return filepath.Join(stateDirectory, "config", name) }
	return []component{
		{"containerd", []string{"--config", config("containerd.toml")}},
		{"etcd", []string{
			"--data-dir", stateDirectory + "/etcd", "--unsafe-no-fsync", "--log-level=warn",
			"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380",
		}},
		{"kube-apiserver", []string{
			"--etcd-servers=http://127.0.0.1:2379", "--advertise-address=" + nodeIP, "--service-cluster-ip-range=" + serviceRange,
			"--allow-privileged=true", "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--client-ca-file=" + pki("ca.crt"), "--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
			"--kubelet-certificate-authority=" + pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
			"--kubelet-client-certificate=" + pki("apiserver-kubelet.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet.key"),
			"--service-account-issuer=https://kubernetes.default.svc." + clusterDomain,
			"--service-account-key-file=" + pki("service-account.crt"), "--service-account-signing-key-file=" + pki("service-account.key"),
		}},
		{"kube-controller-manager", []string{
			"--kubeconfig=" + config("kube-controller-manager"), "--leader-elect=false", "--use-service-account-credentials",
			"--service-account-private-key-file=" + pki("service-account.key"), "--root-ca-file=" + pki("ca.crt"),
			"--kube-api-qps=500", "--kube-api-burst=500",
		}},
		{"kube-scheduler", []string{"--kubeconfig=" + config("kube-scheduler"), "--leader-elect=false", "--kube-api-qps=500", "--kube-api-burst=500"}},
		{"kubelet", []string{"--root-dir=" + kubelet, "--config=" + config("kubelet.yaml"), "--kubeconfig=" + config("kubelet"), "--hostname-override=" + nodeName, "--node-ip=" + nodeIP}},
		{"kube-proxy", []string{
			"--kubeconfig=" + config("kube-proxy"), "--hostname-override=" + nodeName, "--cluster-cidr=" + podRange, "--proxy-mode=iptables",
			// Works without CAP_SYS_RESOURCE, and does not change the machine's limits.
			"--oom-score-adj=0", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		}},
		{"coredns", []string{"-conf", config("Corefile")}},
	}
}

// writeConfiguration writes the components' configuration files, with the cluster's
// control group and this machine's directory of CNI plugins.
func writeConfiguration(cluster, cni string) error {
	files := map[string]string{
		"config/containerd.toml":     fmt.Sprintf(containerdConfig, pauseImage, cni, stateDirectory+"/config/cni"),
		"config/cni/10-net.conflist": fmt.Sprintf(cniConfig, podRange),
		"config/kubelet.yaml":        fmt.Sprintf(kubeletConfig, stateDirectory, controlGroup(cluster), dnsServiceIP, clusterDomain),
		"config/resolv.conf":         "",
		"config/Corefile":            fmt.Sprintf(corefile, nodeIP, clusterDomain, stateDirectory),
		"config/dns.yaml":            fmt.Sprintf(dnsObjects, dnsServiceIP, nodeIP),
		"config/storage.yaml":        storageObjects(),
	}
	for _, directory := range volumeDirectories() {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(directory, 0o777); err != nil { // for pods of any user
			return err
		}
	}
	for name, content := range files {
		path := filepath.Join(stateDirectory, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// volumes is the number of the cluster's persistent volumes. No provisioner makes more.
const volumes = 20

func volumeDirectories() []string {
	var all []string
	for i := range volumes {
		all = append(all, fmt.Sprintf("%s/volumes/%d", stateDirectory, i+1))
	}
	return all
}

// storageObjects returns the default StorageClass and its volumes. Local volumes, unlike
// hostPath volumes, get a pod's fsGroup.
func storageObjects() string {
	objects := storageClass
	for i, directory := range volumeDirectories() {
		objects += fmt.Sprintf(localVolume, i+1, directory, nodeName)
	}
	return objects
}

const containerdConfig = `version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "%s"

[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true # otherwise runc fails without CAP_SYS_RESOURCE

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["%s"]
conf_dir = "%s"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
`

// Each pod has its own link (ptp), so that all packets pass kube-proxy's rules without
// the kernel's bridge filter.
const cniConfig = `{
  "cniVersion": "1.0.0", "name": "step-csi",
  "plugins": [
    {"type": "ptp", "ipam": {"type": "host-local", "dataDir": "/run/cni", "ranges": [[{"subnet": "%s"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %[1]s/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: %[1]s/pki/kubelet-server.crt
tlsPrivateKeyFile: %[1]s/pki/kubelet-server.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
resolvConf: %[1]s/config/resolv.conf
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: %[2]s
failSwapOn: false
clusterDNS: ["%[3]s"]
clusterDomain: %[4]s
# How often the kubelet syncs pods and republishes volumes. The default of one minute
# would slow the tests.
syncFrequency: 10s
maxPods: 250
serializeImagePulls: false
kubeAPIQPS: 500
kubeAPIBurst: 500
# A full disk of the machine must not evict pods.
evictionHard: {memory.available: 0%%, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
`

const corefile = `.:53 {
  bind %s
  errors
  kubernetes %s in-addr.arpa ip6.arpa {
    kubeconfig %s/config/admin
    pods insecure
    ttl 5
  }
  cache 5
}
`

const dnsObjects = `apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: %s
  ports:
  - {name: dns, port: 53, protocol: UDP}
  - {name: dns-tcp, port: 53, protocol: TCP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns-node, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports:
- {name: dns, port: 53, protocol: UDP}
- {name: dns-tcp, port: 53, protocol: TCP}
endpoints:
- addresses: ["%s"]
  conditions: {ready: true}
`

const storageClass = `apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: local
  annotations: {storageclass.kubernetes.io/is-default-class: "true"}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
`

const localVolume = `---
apiVersion: v1
kind: PersistentVolume
metadata: {name: local-%d}
spec:
  capacity: {storage: 10Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: local
  local: {path: %s}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]
`
