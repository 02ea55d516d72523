// What the API server would say of an object: its own validation, by its own code.
package main

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/autoscaling"
	autoscalingvalidation "k8s.io/kubernetes/pkg/apis/autoscaling/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/networking"
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	"k8s.io/kubernetes/pkg/apis/policy"
	policyvalidation "k8s.io/kubernetes/pkg/apis/policy/validation"
)

// validate says what the API server would of a new object. The object has its defaults, as it would there.
func validate(object runtime.Object) (field.ErrorList, error) {
	switch object := object.(type) {
	case *apps.StatefulSet:
		faults := claims(object)
		// As the server's strategy sets it.
		object.Generation = 1
		options := podutil.GetValidationOptionsFromPodTemplate(&object.Spec.Template, nil)
		return append(faults, appsvalidation.ValidateStatefulSet(object, appsvalidation.StatefulSetValidationOptions{}, options)...), nil
	case *core.Pod:
		options := podutil.GetValidationOptionsFromPodSpecAndMeta(&object.Spec, nil, &object.ObjectMeta, nil)
		options.ResourceIsPod = true
		return corevalidation.ValidatePodCreate(object, options), nil
	case *core.Service:
		allocate(object)
		return corevalidation.ValidateServiceCreate(object), nil
	case *core.ConfigMap:
		return corevalidation.ValidateConfigMap(object), nil
	case *core.ServiceAccount:
		return corevalidation.ValidateServiceAccount(object), nil
	case *networking.Ingress:
		return networkingvalidation.ValidateIngressCreate(object), nil
	case *networking.NetworkPolicy:
		return networkingvalidation.ValidateNetworkPolicy(object, networkingvalidation.NetworkPolicyValidationOptions{}), nil
	case *policy.PodDisruptionBudget:
		return policyvalidation.ValidatePodDisruptionBudget(object, policyvalidation.PodDisruptionBudgetValidationOptions{}), nil
	case *autoscaling.HorizontalPodAutoscaler:
		options := autoscalingvalidation.HorizontalPodAutoscalerSpecValidationOptions{MinReplicasLowerBound: 1}
		return autoscalingvalidation.ValidateHorizontalPodAutoscaler(object, options), nil
	}
	return nil, fmt.Errorf("expected a kind that can be validated, but found %T", object)
}

// allocate gives a Service what the server would before it validates.
func allocate(service *core.Service) {
	if service.Spec.ClusterIP != "" && len(service.Spec.ClusterIPs) == 0 {
		service.Spec.ClusterIPs = []string{service.Spec.ClusterIP}
	}
	if service.Spec.Type == core.ServiceTypeLoadBalancer && service.Spec.ExternalTrafficPolicy == core.ServiceExternalTrafficPolicyLocal {
		service.Spec.HealthCheckNodePort = 30000
	}
}

// claims validates what becomes a claim for each replica, which the server looks at only then.
func claims(set *apps.StatefulSet) (faults field.ErrorList) {
	for _, claim := range set.Spec.VolumeClaimTemplates {
		name := claim.Name + "-" + set.Name + "-0"
		claim.ObjectMeta = metav1.ObjectMeta{Name: name, Namespace: set.Namespace, Labels: claim.Labels, Annotations: claim.Annotations}
		options := corevalidation.PersistentVolumeClaimSpecValidationOptions{}
		faults = append(faults, corevalidation.ValidatePersistentVolumeClaim(&claim, options)...)
	}
	return faults
}
