output "cluster_name" {
  description = "Name of the cluster, for modules that give its service accounts a role."
  value       = aws_eks_cluster.this.name
}

output "endpoint" {
  description = "Address of the API server."
  value       = aws_eks_cluster.this.endpoint
}

output "kubeconfig_command" {
  description = "Command that writes how to reach the cluster into ~/.kube/config."
  value       = "aws eks update-kubeconfig --region ${local.region} --name ${aws_eks_cluster.this.name}"
}

output "pools" {
  description = "Labels, taints, and the most nodes and GPUs of each pool: what Kueue's flavors and quotas are written from."
  value = { for name, pool in local.pools : name => {
    labels    = local.labels[name]
    taints    = pool.gpus > 0 ? ["nvidia.com/gpu=true:NoSchedule"] : []
    max_nodes = pool.max
    max_gpus  = pool.max * pool.gpus
  } }
}

output "vpc_id" {
  description = "Network of the cluster."
  value       = aws_vpc.this.id
}

output "private_subnet_ids" {
  description = "Subnets of the nodes by zone."
  value       = { for zone, subnet in aws_subnet.private : zone => subnet.id }
}

output "nat_addresses" {
  description = "Addresses that the cluster's connections to the outside come from, for others' lists of whom they let in."
  value       = [for address in aws_eip.nat : address.public_ip]
}
