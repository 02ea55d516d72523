// Owns: what only Kubernetes' own code can say of a manifest: whether it decodes strictly into the types of the API
// server, the Prometheus Operator and the Gateway API, whether the API server would take it (validate.go), and whether
// its pods keep the restricted Pod Security Standard.
// Promises: reads manifests (YAML, one or several documents) from standard input; prints one line for each fault, with
// the kind and name of the object, to standard output; exits 1 if there is any, and also if there was nothing to check.
//
// `kube-check certificate DIR` makes a certificate for localhost instead, for servers and clients alike: tls.crt, tls.key
// and its authority, ca.crt.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"time"

	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	yamlreader "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	psa "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "certificate" {
		if err := certificate(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "kube-check:", err)
			os.Exit(1)
		}
		return
	}
	faults, pods, err := check(os.Stdin)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if pods == 0 {
		faults = append(faults, "expected at least one pod, but found none")
	}
	for _, fault := range faults {
		fmt.Println(fault)
	}
	if len(faults) > 0 {
		os.Exit(1)
	}
}

// check decodes each document and judges its pod, if it has one. Also says how many pods there were.
func check(in io.Reader) (faults []string, pods int, err error) {
	// Of Kubernetes' own kinds this scheme knows the defaults too.
	scheme := legacyscheme.Scheme
	for _, add := range []func(*runtime.Scheme) error{monitoringv1.AddToScheme, gatewayv1.Install} {
		if err := add(scheme); err != nil {
			return nil, 0, err
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return nil, 0, err
	}
	restricted := psa.LevelVersion{Level: psa.LevelRestricted, Version: psa.LatestVersion()}
	reader := yamlreader.NewYAMLReader(bufio.NewReader(in))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return faults, pods, nil
		}
		if err != nil {
			return nil, 0, err
		}
		var bare map[string]any
		if err := yamlreader.Unmarshal(document, &bare); err == nil && len(bare) == 0 {
			continue
		}
		object, kind, err := decoder.Decode(document, nil, nil)
		if err != nil {
			faults = append(faults, fmt.Sprintf("%v %v: %v", bare["kind"], name(bare), err))
			continue
		}
		faults = append(faults, invalid(scheme, object, fmt.Sprintf("%s %v", kind.Kind, name(bare)))...)
		meta, spec := pod(object)
		if spec == nil {
			continue
		}
		pods++
		for _, result := range evaluator.EvaluatePod(restricted, meta, spec) {
			if !result.Allowed {
				faults = append(faults, fmt.Sprintf("%s %v: %s: %s", kind.Kind, name(bare), result.ForbiddenReason, result.ForbiddenDetail))
			}
		}
	}
}

// invalid says what the API server would refuse. The foreign kinds have no validation but their types.
func invalid(scheme *runtime.Scheme, object runtime.Object, label string) (faults []string) {
	switch object.(type) {
	case *monitoringv1.ServiceMonitor, *monitoringv1.PrometheusRule, *gatewayv1.HTTPRoute:
		return nil
	}
	scheme.Default(object)
	internal, err := scheme.UnsafeConvertToVersion(object.DeepCopyObject(), runtime.InternalGroupVersioner)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", label, err)}
	}
	found, err := validate(internal)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", label, err)}
	}
	for _, fault := range found {
		faults = append(faults, fmt.Sprintf("%s: %v", label, fault))
	}
	return faults
}

func name(bare map[string]any) any {
	if meta, ok := bare["metadata"].(map[string]any); ok {
		return meta["name"]
	}
	return "without a name"
}

func pod(object runtime.Object) (*metav1.ObjectMeta, *corev1.PodSpec) {
	switch object := object.(type) {
	case *corev1.Pod:
		return &object.ObjectMeta, &object.Spec
	case *appsv1.StatefulSet:
		return &object.Spec.Template.ObjectMeta, &object.Spec.Template.Spec
	}
	return nil, nil
}

func certificate(dir string) error {
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: authority.NotBefore, NotAfter: authority.NotAfter, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	signing, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca, err := x509.CreateCertificate(rand.Reader, authority, authority, &signing.PublicKey, signing)
	if err != nil {
		return err
	}
	chain, err := x509.CreateCertificate(rand.Reader, leaf, authority, &key.PublicKey, signing)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for file, block := range map[string]*pem.Block{
		"ca.crt":  {Type: "CERTIFICATE", Bytes: ca},
		"tls.crt": {Type: "CERTIFICATE", Bytes: chain},
		"tls.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	return nil
}
