package chart

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// peer is who connects: a pod, or an address that is not a pod's.
type peer struct {
	namespace string
	labels    labels.Set
	address   string
}

// admits tells whether the policies of the namespace step-ca let the peer connect to
// the port of a pod with these labels, by the rules of
// https://kubernetes.io/docs/concepts/services-networking/network-policies/.
func admits(t *testing.T, policies []networking.NetworkPolicy, pod labels.Set, port int32, from peer) bool {
	t.Helper()
	isolated := false
	for _, p := range policies {
		if !selected(t, &p.Spec.PodSelector, pod) || !slices.Contains(p.Spec.PolicyTypes, networking.PolicyTypeIngress) {
			continue
		}
		isolated = true
		for _, rule := range p.Spec.Ingress {
			ports := len(rule.Ports) == 0 || slices.ContainsFunc(rule.Ports, func(p networking.NetworkPolicyPort) bool {
				return p.Port.IntVal == port && *p.Protocol == core.ProtocolTCP && p.EndPort == nil
			})
			peers := len(rule.From) == 0 || slices.ContainsFunc(rule.From, func(p networking.NetworkPolicyPeer) bool { return matches(t, p, from) })
			if ports && peers {
				return true
			}
		}
	}
	return !isolated
}

func matches(t *testing.T, p networking.NetworkPolicyPeer, from peer) bool {
	t.Helper()
	if p.IPBlock != nil {
		return from.address != "" && netip.MustParsePrefix(p.IPBlock.CIDR).Contains(netip.MustParseAddr(from.address))
	}
	if from.address != "" {
		return false
	}
	namespace := from.namespace == "step-ca"
	if p.NamespaceSelector != nil {
		namespace = selected(t, p.NamespaceSelector, labels.Set{"kubernetes.io/metadata.name": from.namespace})
	}
	return namespace && (p.PodSelector == nil || selected(t, p.PodSelector, from.labels))
}

func selected(t *testing.T, selector *meta.LabelSelector, set labels.Set) bool {
	t.Helper()
	s, err := meta.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return s.Matches(set)
}

// policiesOf returns the NetworkPolicies among the objects.
func policiesOf(t *testing.T, objects map[string]object) (all []networking.NetworkPolicy) {
	t.Helper()
	for _, kind := range []string{"NetworkPolicy", "ra/NetworkPolicy"} {
		if objects[kind] == nil {
			continue
		}
		var p networking.NetworkPolicy
		if err := yaml.UnmarshalStrict([]byte(text(t, objects[kind])), &p); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if p.Namespace != "step-ca" {
			t.Errorf("%s is in the namespace %q", kind, p.Namespace)
		}
		all = append(all, p)
	}
	return all
}

func labelsOf(o any) labels.Set {
	set := labels.Set{}
	for key, value := range at(o, "metadata", "labels").(object) {
		set[key] = value.(string)
	}
	return set
}

// portsOf returns the container's ports by name.
func portsOf(o object) map[string]int32 {
	ports := map[string]int32{}
	for _, p := range at(at(o, "spec", "template", "spec", "containers").([]any)[0], "ports").([]any) {
		ports[at(p, "name").(string)] = int32(at(p, "containerPort").(float64))
	}
	return ports
}

// By default, only the node plugins reach the registration authority's port, and only
// monitoring reaches the metrics, whatever names and labels the values set.
func TestNetworkPoliciesAdmit(t *testing.T) {
	const long = "a-name-that-is-as-long-as-the-name-of-an-object-can-be-in-all-1"
	const node, other = "192.0.2.7", "198.51.100.7"
	for name, args := range map[string][]string{
		"default":         {},
		"restrict egress": {"--set", "networkPolicy.restrictEgress=true"},
		"all values":      {"--values", allValues, "--set", "tests.enabled=true"},
		"labels": {"--set-json", `podLabels={"app.kubernetes.io/name":"step-csi-ra","a":"b"}`, "--set-json", `ra.podLabels={"app.kubernetes.io/name":"step-csi"}`,
			"--set-json", `commonLabels={"app.kubernetes.io/instance":"x"}`},
		"names":        {"--set", "nameOverride=" + long, "--set", "fullnameOverride=" + long},
		"ports":        {"--set", "httpPort=9443,ra.port=9444"},
		"host network": {"--set", "hostNetwork=true,networkPolicy.nodeCIDRs={192.0.2.0/24,2001:db8::/64}"},
		"another port": {"--set", "ra.httpPort=9444"},
		"mode node":    {"--set", "mode=node"},
	} {
		t.Run(name, func(t *testing.T) {
			objects := render(t, args...)
			policies := policiesOf(t, objects)
			daemonSet, deployment := objects["DaemonSet"], objects["ra/Deployment"]
			plugin := labelsOf(at(daemonSet, "spec", "template"))
			hostNetwork := at(daemonSet, "spec", "template", "spec", "hostNetwork") == true
			prometheus := peer{namespace: "monitoring", labels: labels.Set{"app": "prometheus"}}
			strangers := map[string]peer{
				"a pod of the release's namespace":              {namespace: "step-ca", labels: labels.Set{"app": "web"}},
				"the pod of helm test":                          {namespace: "step-ca", labels: labelsOf(objects["hook"])},
				"a pod of another namespace":                    {namespace: "shop", labels: labels.Set{"app": "web"}},
				"a pod without labels":                          {namespace: "shop"},
				"a pod of another namespace like a node plugin": {namespace: "shop", labels: plugin},
				"an address outside of the cluster":             {address: other},
			}
			expect := func(pod labels.Set, port int32, who string, from peer, want bool) {
				t.Helper()
				if got := admits(t, policies, pod, port, from); got != want {
					t.Errorf("%s connects to port %d of %v: %v, want %v", who, port, pod, got, want)
				}
			}
			// A pod in the node's network has no NetworkPolicy.
			if hostNetwork == (objects["NetworkPolicy"] != nil) {
				t.Errorf("hostNetwork is %v, but the node plugin has the NetworkPolicy %v", hostNetwork, objects["NetworkPolicy"])
			}
			metrics := map[string]object{"ra": deployment}
			if !hostNetwork {
				metrics["plugin"] = daemonSet
			}
			for _, o := range metrics {
				if o == nil {
					continue
				}
				pod, port := labelsOf(at(o, "spec", "template")), portsOf(o)["http"]
				expect(pod, port, "Prometheus", prometheus, true)
				for who, from := range strangers {
					expect(pod, port, who, from, false)
				}
				expect(pod, port, "a node plugin", peer{namespace: "step-ca", labels: plugin}, false)
			}
			if deployment == nil {
				return
			}
			authority, port := labelsOf(at(deployment, "spec", "template")), portsOf(deployment)["grpc"]
			expect(authority, port, "a node plugin", peer{namespace: "step-ca", labels: plugin}, true)
			expect(authority, port, "another node's address", peer{address: node}, name == "host network" || name == "all values")
			expect(authority, port, "Prometheus", prometheus, false)
			expect(authority, port, "the registration authority", peer{namespace: "step-ca", labels: authority}, false)
			expect(authority, port+1000, "a node plugin", peer{namespace: "step-ca", labels: plugin}, false)
			for who, from := range strangers {
				expect(authority, port, who, from, false)
			}
		})
	}
}

// An empty list of who may read metrics means everybody, as in a NetworkPolicy.
func TestEverybodyMayReadMetrics(t *testing.T) {
	objects := render(t, "--set-json", "networkPolicy.from=[]")
	for _, kind := range []string{"DaemonSet", "ra/Deployment"} {
		pod := labelsOf(at(objects[kind], "spec", "template"))
		if !admits(t, policiesOf(t, objects), pod, 9808, peer{namespace: "shop"}) {
			t.Errorf("a pod cannot read the metrics of the %s", kind)
		}
	}
}

// Without NetworkPolicies, the chart makes none.
func TestNetworkPoliciesOff(t *testing.T) {
	for _, mode := range []string{"ra", "node"} {
		if all := policiesOf(t, render(t, "--set", "networkPolicy.enabled=false,hostNetwork=true,mode="+mode)); len(all) > 0 {
			t.Errorf("mode %s: %v", mode, all)
		}
	}
}

// The NetworkPolicies allow exactly these connections. Only restrictEgress restricts
// egress: by default, the addresses of the CA and of the API server are unknown.
func TestNetworkPolicies(t *testing.T) {
	pods := func(name string) any {
		return object{"podSelector": object{"matchLabels": object{"app.kubernetes.io/name": name, "app.kubernetes.io/instance": "step-csi"}}}
	}
	rule := func(way string, peers []any, ports ...float64) any {
		r := object{"ports": []any{}}
		for _, port := range ports {
			r["ports"] = append(r["ports"].([]any), object{"port": port, "protocol": "TCP"})
		}
		if peers != nil {
			r[way] = peers
		}
		return r
	}
	dns := object{"ports": []any{object{"port": 53.0, "protocol": "UDP"}, object{"port": 53.0, "protocol": "TCP"}}}
	ca := []any{object{"ipBlock": object{"cidr": "192.0.2.0/24"}}}
	monitoring := []any{object{"podSelector": object{"matchLabels": object{"a": "b"}}}}
	nodes := []any{pods("step-csi"), object{"ipBlock": object{"cidr": "198.51.100.0/24"}}}
	metrics := rule("from", monitoring, 9808)
	for mode, want := range map[string]map[string]object{
		"node": {"NetworkPolicy": {"ingress": []any{metrics}, "egress": []any{dns, rule("to", ca, 443, 9000)}}},
		"ra": {
			"NetworkPolicy":    {"ingress": []any{metrics}, "egress": []any{dns, rule("to", []any{pods("step-csi-ra")}, 8443)}},
			"ra/NetworkPolicy": {"ingress": []any{rule("from", nodes, 8443), metrics}, "egress": []any{dns, rule("to", ca, 443, 9000), rule("to", nil, 443, 6443)}},
		},
	} {
		for _, restrict := range []bool{true, false} {
			objects := render(t, "--set", "mode="+mode, "--values", valueFile(t, "networkPolicy", object{
				"from": monitoring, "to": ca, "nodeCIDRs": []any{"198.51.100.0/24"}, "restrictEgress": restrict,
			}))
			for kind, name := range map[string]string{"NetworkPolicy": "step-csi", "ra/NetworkPolicy": "step-csi-ra"} {
				spec := maps.Clone(want[kind])
				if spec != nil {
					spec["podSelector"] = at(pods(name), "podSelector")
					spec["policyTypes"] = []any{"Ingress", "Egress"}
					if !restrict {
						delete(spec, "egress")
						spec["policyTypes"] = []any{"Ingress"}
					}
				}
				if got, _ := objects[kind]["spec"].(object); !reflect.DeepEqual(got, spec) {
					t.Errorf("mode %s, restrictEgress %v: %s:\n%v\nnot\n%v", mode, restrict, kind, got, spec)
				}
			}
		}
	}
}
