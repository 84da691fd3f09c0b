// Package fleet lets 5,000 nodes with 110 volumes each run against one CA, in virtual
// time: through outages, restarts and rotations of the root. What it runs is the
// plugin's own scheduling (driver/schedule, issuer/renewal and the timer of the roots
// in issuer); what it models is the CA, the kubelet and the pods. docs/fleet.md says
// what came out.
package fleet
