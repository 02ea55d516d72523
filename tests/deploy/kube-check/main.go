// Owns: what only Kubernetes' own code can say of a manifest: whether it decodes strictly into the types of the API
// server, the Prometheus Operator and the Gateway API, and whether its pods keep the restricted Pod Security Standard.
// Promises: reads manifests (YAML, one or several documents) from standard input; prints one line for each fault, with
// the kind and name of the object, to standard output; exits 1 if there is any, and also if there was nothing to check.
//
// `kube-check certificate DIR` writes tls.crt, tls.key and ca.crt (the same self-signed certificate) instead.
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
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	yamlreader "k8s.io/apimachinery/pkg/util/yaml"
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
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		appsv1.AddToScheme, autoscalingv2.AddToScheme, corev1.AddToScheme, networkingv1.AddToScheme,
		policyv1.AddToScheme, monitoringv1.AddToScheme, gatewayv1.Install,
	} {
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
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	for file, text := range map[string][]byte{"tls.crt": public, "ca.crt": public, "tls.key": secret} {
		if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}
