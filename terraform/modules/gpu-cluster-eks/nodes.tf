# Pools of nodes. Each is one managed node group, which can stand at zero: its labels, taints and GPUs are also tags, which
# is all that the autoscaler can know of a pool without a node.

locals {
  # The label that Kueue's flavors in manifests/ select their nodes by.
  pool_label = "shopfloor.io/pool"

  pools = merge(
    { for name, pool in var.cpu_pools : name => merge(pool, { gpus = 0 }) },
    var.gpu_pools,
  )

  labels = { for name, pool in local.pools : name => merge(
    { (local.pool_label) = coalesce(pool.flavor, name) },
    # The second is how the autoscaler of AWS knows that a new node's GPUs come after it: without, it begins a second node.
    pool.gpus > 0 ? { "nvidia.com/gpu.present" = "true", "k8s.amazonaws.com/accelerator" = "nvidia" } : {},
  ) }

  template = "k8s.io/cluster-autoscaler/node-template"

  pool_tags = merge([for name, pool in local.pools : merge(
    { for key, value in local.labels[name] : "${name} ${key}" => { pool = name, key = "${local.template}/label/${key}", value = value } },
    pool.gpus == 0 ? {} : {
      "${name} taint" = { pool = name, key = "${local.template}/taint/nvidia.com/gpu", value = "true:NoSchedule" }
      "${name} gpus"  = { pool = name, key = "${local.template}/resources/nvidia.com/gpu", value = tostring(pool.gpus) }
    },
  )]...)
}

data "aws_iam_policy_document" "node_trust" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "node" {
  name               = "${var.name}-node"
  assume_role_policy = data.aws_iam_policy_document.node_trust.json
}

# What a node needs to join and to pull images, and no more: whatever else somebody needs is a right of a service account.
resource "aws_iam_role_policy_attachment" "node" {
  for_each = toset(["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"])

  role       = aws_iam_role.node.name
  policy_arn = "${local.policies}/${each.value}"
}

resource "aws_launch_template" "pool" {
  for_each = local.pools

  name_prefix            = "${var.name}-${each.key}-"
  update_default_version = true

  # With one hop the metadata, and the node's role in it, stay out of the pods' reach.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = each.value.disk_gib
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  # The provider's default tags stop at the template: instances and their disks are what costs, so they are tagged here.
  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume"])
    content {
      resource_type = tag_specifications.value
      tags          = merge(data.aws_default_tags.current.tags, { Name = "${var.name}-${each.key}", Pool = each.key })
    }
  }
}

data "aws_default_tags" "current" {}

resource "aws_eks_node_group" "pool" {
  for_each = local.pools

  cluster_name    = aws_eks_cluster.this.name
  node_group_name = each.key
  node_role_arn   = aws_iam_role.node.arn
  version         = aws_eks_cluster.this.version
  subnet_ids      = [for zone in coalesce(each.value.zones, var.availability_zones) : aws_subnet.private[zone].id]
  ami_type        = each.value.gpus > 0 ? "AL2023_x86_64_NVIDIA" : "AL2023_x86_64_STANDARD"
  capacity_type   = each.value.capacity
  instance_types  = each.value.instance_types
  labels          = local.labels[each.key]

  launch_template {
    id      = aws_launch_template.pool[each.key].id
    version = aws_launch_template.pool[each.key].latest_version
  }

  scaling_config {
    min_size     = each.value.min
    max_size     = each.value.max
    desired_size = each.value.min
  }

  update_config {
    max_unavailable = 1
  }

  dynamic "taint" {
    for_each = each.value.gpus > 0 ? ["nvidia.com/gpu"] : []
    content {
      key    = taint.value
      value  = "true"
      effect = "NO_SCHEDULE"
    }
  }

  lifecycle {
    # The autoscaler's number, not ours.
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [
    aws_iam_role_policy_attachment.node,
    # Without a network a node never becomes ready, and the group fails.
    aws_eks_addon.before_nodes,
  ]
}

resource "aws_autoscaling_group_tag" "pool" {
  for_each = local.pool_tags

  autoscaling_group_name = aws_eks_node_group.pool[each.value.pool].resources[0].autoscaling_groups[0].name

  tag {
    key                 = each.value.key
    value               = each.value.value
    propagate_at_launch = false
  }
}
