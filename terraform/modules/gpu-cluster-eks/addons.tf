# What a cluster needs before a manifest can be applied to it: addresses for pods, names, disks, credentials, numbers of
# what is used, and a watch over nodes. Operators and the platform itself come from manifests/, as on any other cluster.

locals {
  # Each gets a role through EKS's own agent; nobody else's pods can have it.
  identities = {
    "vpc-cni" = {
      namespace       = "kube-system"
      service_account = "aws-node"
      policy          = "${local.policies}/AmazonEKS_CNI_Policy"
    }
    "aws-ebs-csi-driver" = {
      namespace       = "kube-system"
      service_account = "ebs-csi-controller-sa"
      policy          = "${local.policies}/service-role/AmazonEBSCSIDriverPolicy"
    }
  }

  addons_before_nodes = {
    "eks-pod-identity-agent" = null
    "kube-proxy"             = null
    # The network's own agent is what enforces NetworkPolicies; it is off unless asked for.
    "vpc-cni" = jsonencode({ enableNetworkPolicy = "true" })
  }

  addons = {
    # Disks that pods ask for cost too, and no tag of the provider reaches them.
    "aws-ebs-csi-driver"        = jsonencode({ controller = { extraVolumeTags = data.aws_default_tags.current.tags } })
    "coredns"                   = null
    "eks-node-monitoring-agent" = null
    "metrics-server"            = null
  }
}

data "aws_iam_policy_document" "pod_trust" {
  for_each = merge(local.identities, { "cluster-autoscaler" = { namespace = "kube-system", service_account = "cluster-autoscaler" } })

  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]

    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/eks-cluster-arn"
      values   = ["arn:${local.partition}:eks:${local.region}:${local.account}:cluster/${var.name}"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/kubernetes-namespace"
      values   = [each.value.namespace]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/kubernetes-service-account"
      values   = [each.value.service_account]
    }
  }
}

resource "aws_iam_role" "addon" {
  for_each = local.identities

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.pod_trust[each.key].json
}

resource "aws_iam_role_policy_attachment" "addon" {
  for_each = local.identities

  role       = aws_iam_role.addon[each.key].name
  policy_arn = each.value.policy
}

resource "aws_eks_addon" "before_nodes" {
  for_each = local.addons_before_nodes

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  addon_version               = lookup(var.addon_versions, each.key, null)
  configuration_values        = each.value
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"

  dynamic "pod_identity_association" {
    for_each = { for name, identity in local.identities : name => identity if name == each.key }
    content {
      service_account = pod_identity_association.value.service_account
      role_arn        = aws_iam_role.addon[each.key].arn
    }
  }

  depends_on = [aws_iam_role_policy_attachment.addon]
}

resource "aws_eks_addon" "this" {
  for_each = local.addons

  cluster_name                = aws_eks_cluster.this.name
  addon_name                  = each.key
  addon_version               = lookup(var.addon_versions, each.key, null)
  configuration_values        = each.value
  resolve_conflicts_on_create = "OVERWRITE"
  resolve_conflicts_on_update = "OVERWRITE"

  dynamic "pod_identity_association" {
    for_each = { for name, identity in local.identities : name => identity if name == each.key }
    content {
      service_account = pod_identity_association.value.service_account
      role_arn        = aws_iam_role.addon[each.key].arn
    }
  }

  # An add-on whose pods have no node to run on never becomes active.
  depends_on = [aws_eks_node_group.pool, aws_iam_role_policy_attachment.addon]
}

# The autoscaler is no add-on of EKS: its role waits here for the service account that it is installed with.
data "aws_iam_policy_document" "autoscaler" {
  #checkov:skip=CKV_AWS_356:These rights to look cannot be narrowed to a resource
  statement {
    sid = "Look"
    actions = [
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeAutoScalingInstances",
      "autoscaling:DescribeLaunchConfigurations",
      "autoscaling:DescribeScalingActivities",
      "autoscaling:DescribeTags",
      "ec2:DescribeImages",
      "ec2:DescribeInstanceTypes",
      "ec2:DescribeLaunchTemplateVersions",
      "ec2:GetInstanceTypesFromInstanceRequirements",
    ]
    resources = ["*"]
  }

  statement {
    sid       = "LookAtPools"
    actions   = ["eks:DescribeNodegroup"]
    resources = ["arn:${local.partition}:eks:${local.region}:${local.account}:nodegroup/${var.name}/*"]
  }

  statement {
    sid       = "Scale"
    actions   = ["autoscaling:SetDesiredCapacity", "autoscaling:TerminateInstanceInAutoScalingGroup"]
    resources = ["arn:${local.partition}:autoscaling:${local.region}:${local.account}:autoScalingGroup:*"]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/k8s.io/cluster-autoscaler/${var.name}"
      values   = ["owned"]
    }
  }
}

resource "aws_iam_role" "autoscaler" {
  name               = "${var.name}-cluster-autoscaler"
  assume_role_policy = data.aws_iam_policy_document.pod_trust["cluster-autoscaler"].json
}

resource "aws_iam_role_policy" "autoscaler" {
  name   = "scale"
  role   = aws_iam_role.autoscaler.id
  policy = data.aws_iam_policy_document.autoscaler.json
}

resource "aws_eks_pod_identity_association" "autoscaler" {
  cluster_name    = aws_eks_cluster.this.name
  namespace       = "kube-system"
  service_account = "cluster-autoscaler"
  role_arn        = aws_iam_role.autoscaler.arn
}
