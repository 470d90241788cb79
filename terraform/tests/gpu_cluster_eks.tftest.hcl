mock_provider "aws" {
  source          = "./tests/aws"
  override_during = plan
}

variables {
  name               = "acme"
  kubernetes_version = "1.35"
  availability_zones = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  administrators     = ["arn:aws:iam::123456789012:role/platform"]
  members            = { "arn:aws:iam::123456789012:role/forecasting" = ["forecasting"] }

  cpu_pools = {
    system   = { instance_types = ["m6i.large"], min = 2, max = 4 }
    cpu-spot = { instance_types = ["m6i.2xlarge", "m5.2xlarge"], capacity = "SPOT", max = 6, flavor = "cpu" }
  }

  gpu_pools = {
    gpu-spot  = { instance_types = ["g5.2xlarge", "g6.2xlarge"], gpus = 1, capacity = "SPOT", max = 2 }
    gpu-large = { instance_types = ["g5.12xlarge"], gpus = 4, max = 3, flavor = "gpu-ondemand", zones = ["eu-central-1b"] }
  }
}

override_resource {
  target          = aws_subnet.private["eu-central-1a"]
  values          = { id = "subnet-private-a" }
  override_during = plan
}

override_resource {
  target          = aws_subnet.private["eu-central-1b"]
  values          = { id = "subnet-private-b" }
  override_during = plan
}

override_resource {
  target          = aws_subnet.private["eu-central-1c"]
  values          = { id = "subnet-private-c" }
  override_during = plan
}

override_resource {
  target          = aws_nat_gateway.this["eu-central-1a"]
  values          = { id = "nat-a" }
  override_during = plan
}

override_resource {
  target          = aws_nat_gateway.this["eu-central-1b"]
  values          = { id = "nat-b" }
  override_during = plan
}

override_resource {
  target          = aws_nat_gateway.this["eu-central-1c"]
  values          = { id = "nat-c" }
  override_during = plan
}

run "the_internet_reaches_no_api_server_that_was_not_opened" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  assert {
    condition     = !aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].endpoint_private_access
    error_message = "The API server is open."
  }

  assert {
    condition     = toset(aws_eks_cluster.this.encryption_config[0].resources) == toset(["secrets"]) && aws_eks_cluster.this.encryption_config[0].provider[0].key_arn == aws_kms_key.this.arn
    error_message = "Secrets are not encrypted with the cluster's key."
  }

  assert {
    condition     = contains(aws_eks_cluster.this.enabled_cluster_log_types, "audit") && length(aws_eks_cluster.this.enabled_cluster_log_types) == 5
    error_message = "A log of the control plane is not kept."
  }

  assert {
    condition     = alltrue([for group in [aws_cloudwatch_log_group.cluster, aws_cloudwatch_log_group.refused] : group.retention_in_days == 365 && group.kms_key_id == aws_kms_key.this.arn])
    error_message = "A log is not encrypted, or not kept for a year."
  }
}

run "named_networks_reach_an_api_server_that_was_opened" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  variables {
    public_access_cidrs = ["203.0.113.0/24"]
  }

  assert {
    condition     = aws_eks_cluster.this.vpc_config[0].endpoint_public_access && aws_eks_cluster.this.vpc_config[0].public_access_cidrs == toset(["203.0.113.0/24"])
    error_message = "The API server is open to others than were named."
  }
}

run "who_creates_the_cluster_is_nobody_in_it" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  assert {
    condition     = aws_eks_cluster.this.access_config[0].authentication_mode == "API" && !aws_eks_cluster.this.access_config[0].bootstrap_cluster_creator_admin_permissions
    error_message = "Who creates the cluster is its administrator."
  }

  assert {
    condition     = [for one in aws_eks_access_policy_association.administrator : one.principal_arn] == ["arn:aws:iam::123456789012:role/platform"]
    error_message = "The administrators are others than were named."
  }

  assert {
    condition     = { for arn, one in aws_eks_access_entry.member : arn => one.kubernetes_groups } == { "arn:aws:iam::123456789012:role/forecasting" = toset(["forecasting"]) }
    error_message = "A member is in other groups than were named."
  }
}

run "nodes_have_no_address_of_their_own_outside" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  assert {
    condition     = { for zone, subnet in aws_subnet.private : zone => subnet.cidr_block } == { eu-central-1a = "10.0.0.0/20", eu-central-1b = "10.0.16.0/20", eu-central-1c = "10.0.32.0/20" }
    error_message = "The nodes' subnets are others."
  }

  assert {
    condition     = alltrue([for subnet in concat(values(aws_subnet.public), values(aws_subnet.private)) : subnet.map_public_ip_on_launch != true])
    error_message = "A subnet gives public addresses."
  }

  assert {
    condition     = alltrue(flatten([for pool in aws_eks_node_group.pool : [for subnet in pool.subnet_ids : startswith(subnet, "subnet-private-")]]))
    error_message = "A node stands in a public subnet."
  }

  assert {
    condition     = { for zone, route in aws_route.private_out : zone => route.nat_gateway_id } == { eu-central-1a = "nat-a", eu-central-1b = "nat-b", eu-central-1c = "nat-c" }
    error_message = "A zone has no way out of its own."
  }

  assert {
    condition     = aws_vpc_endpoint.s3.vpc_endpoint_type == "Gateway" && length(aws_vpc_endpoint.s3.route_table_ids) > 0
    error_message = "Objects pass a NAT gateway."
  }
}

run "one_gateway_serves_every_zone_where_that_was_chosen" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  variables {
    nat_gateway_per_zone = false
  }

  assert {
    condition     = keys(aws_nat_gateway.this) == ["eu-central-1a"] && alltrue([for route in aws_route.private_out : route.nat_gateway_id == "nat-a"])
    error_message = "There is another way out than the one."
  }
}

run "a_pool_begins_at_its_least_and_gpus_at_zero" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  assert {
    condition = { for name, pool in aws_eks_node_group.pool : name => "${pool.capacity_type} ${pool.scaling_config[0].min_size} ${pool.scaling_config[0].desired_size} ${pool.scaling_config[0].max_size} ${pool.ami_type}" } == {
      system    = "ON_DEMAND 2 2 4 AL2023_x86_64_STANDARD"
      cpu-spot  = "SPOT 0 0 6 AL2023_x86_64_STANDARD"
      gpu-spot  = "SPOT 0 0 2 AL2023_x86_64_NVIDIA"
      gpu-large = "ON_DEMAND 0 0 3 AL2023_x86_64_NVIDIA"
    }
    error_message = "A pool has another size, price or image."
  }

  assert {
    condition     = { for name, pool in aws_eks_node_group.pool : name => [for taint in pool.taint : "${taint.key}=${taint.value}:${taint.effect}"] if length(pool.taint) > 0 } == { gpu-spot = ["nvidia.com/gpu=true:NO_SCHEDULE"], gpu-large = ["nvidia.com/gpu=true:NO_SCHEDULE"] }
    error_message = "Pods that need no GPU land on nodes that have some, or others are kept away from those that have none."
  }

  assert {
    condition     = { for name, pool in aws_eks_node_group.pool : name => pool.labels["shopfloor.io/pool"] } == { system = "system", cpu-spot = "cpu", gpu-spot = "gpu-spot", gpu-large = "gpu-ondemand" }
    error_message = "A node counts to another flavor."
  }

  assert {
    condition     = aws_eks_node_group.pool["gpu-large"].subnet_ids == toset(["subnet-private-b"])
    error_message = "A pool spans zones that it was not given."
  }
}

run "pools_follow_the_control_plane_to_its_version" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  variables {
    kubernetes_version = "1.36"
  }

  assert {
    condition     = alltrue([for version in concat([aws_eks_cluster.this.version], [for pool in aws_eks_node_group.pool : pool.version]) : version == "1.36"])
    error_message = "A pool stays at another version."
  }
}

run "the_autoscaler_knows_a_pool_that_has_no_node" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  assert {
    condition = { for key, one in aws_autoscaling_group_tag.pool : one.tag[0].key => one.tag[0].value if startswith(key, "gpu-large ") } == {
      "k8s.io/cluster-autoscaler/node-template/label/shopfloor.io/pool"             = "gpu-ondemand"
      "k8s.io/cluster-autoscaler/node-template/label/nvidia.com/gpu.present"        = "true"
      "k8s.io/cluster-autoscaler/node-template/label/k8s.amazonaws.com/accelerator" = "nvidia"
      "k8s.io/cluster-autoscaler/node-template/taint/nvidia.com/gpu"                = "true:NoSchedule"
      "k8s.io/cluster-autoscaler/node-template/resources/nvidia.com/gpu"            = "4"
    }
    error_message = "A pool at zero is not known for what it has."
  }

  assert {
    condition = alltrue([for statement in data.aws_iam_policy_document.autoscaler.statement :
      alltrue([for condition in statement.condition : condition.variable == "aws:ResourceTag/k8s.io/cluster-autoscaler/acme"]) && length(statement.condition) == 1
    if anytrue([for action in statement.actions : can(regex("Set|Terminate", action))])])
    error_message = "The autoscaler can change groups of another cluster."
  }
}

run "pods_do_not_get_at_their_nodes_role_and_disks_are_encrypted" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  assert {
    condition     = alltrue([for template in aws_launch_template.pool : template.metadata_options[0].http_tokens == "required" && template.metadata_options[0].http_put_response_hop_limit == 1])
    error_message = "A pod reaches its node's credentials."
  }

  assert {
    condition     = alltrue([for template in aws_launch_template.pool : template.block_device_mappings[0].ebs[0].encrypted == "true"])
    error_message = "A node's disk is not encrypted."
  }

  assert {
    condition     = alltrue([for template in aws_launch_template.pool : alltrue([for one in template.tag_specifications : one.tags["Project"] == "shopfloor"])])
    error_message = "What costs does not carry the tag that a budget counts by."
  }

  assert {
    condition     = toset([for one in aws_iam_role_policy_attachment.node : one.policy_arn]) == toset(["arn:aws:iam::aws:policy/AmazonEKSWorkerNodePolicy", "arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPullOnly"])
    error_message = "A node may do more than join and pull."
  }

  assert {
    condition     = jsondecode(aws_eks_addon.before_nodes["vpc-cni"].configuration_values).enableNetworkPolicy == "true"
    error_message = "NetworkPolicies are not enforced."
  }
}

run "the_whole_internet_is_refused" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  variables {
    public_access_cidrs = ["0.0.0.0/0"]
  }

  expect_failures = [var.public_access_cidrs]
}

run "a_cluster_without_a_node_that_stays_is_refused" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  variables {
    cpu_pools = { cpu-spot = { instance_types = ["m6i.large"], capacity = "SPOT", max = 2 } }
  }

  expect_failures = [var.cpu_pools]
}

run "a_pool_in_a_zone_that_the_cluster_has_not_is_refused" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  variables {
    gpu_pools = { gpu-spot = { instance_types = ["g5.2xlarge"], gpus = 1, max = 2, zones = ["eu-west-1a"] } }
  }

  expect_failures = [var.gpu_pools]
}

run "a_member_of_the_masters_is_refused" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks"
  }

  variables {
    members = { "arn:aws:iam::123456789012:role/forecasting" = ["system:masters"] }
  }

  expect_failures = [var.members]
}
