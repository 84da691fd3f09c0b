// Package fleet runs 5,000 nodes with 110 volumes each against one CA, through the
// registration authority, in virtual time: through outages, restarts and rotations of
// the root. The scheduling is the plugin's own code (issuer/schedule, issuer/renewal and
// the roots timer of issuer). The authority, the API server, the CA, the kubelet and the
// pods are models. docs/fleet.md has the results.
package fleet
