output "kubeconfig_command" {
  description = "Command that writes how to reach the cluster into ~/.kube/config."
  value       = module.cluster.kubeconfig_command
}

output "pools" {
  description = "Labels, taints, and the most nodes and GPUs of each pool: what Kueue's flavors and quotas are written from."
  value       = module.cluster.pools
}

output "s3_endpoint_url" {
  description = "Address of S3, for the teams' profiles."
  value       = module.objects.endpoint
}

output "buckets" {
  description = "Names of the buckets by what they hold."
  value       = module.objects.buckets
}

output "roles" {
  description = "IAM roles of the service accounts that use objects."
  value       = module.objects.role_arns
}
