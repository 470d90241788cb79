# A role for each service account that needs objects: no key to keep, to leak or to change. EKS hands its pods credentials
# of some hours; nobody but that account in that cluster can take the role.

locals {
  bucket_actions = ["s3:GetBucketLocation"]
  list_actions   = ["s3:ListBucket"]
  upload_actions = ["s3:ListBucketMultipartUploads"]
  read_actions   = ["s3:GetObject", "s3:GetObjectTagging"]
  write_actions = [
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:GetObjectTagging",
    "s3:PutObjectTagging",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
  ]
}

data "aws_iam_policy_document" "trust" {
  for_each = var.workloads

  statement {
    actions = ["sts:AssumeRole", "sts:TagSession"]

    principals {
      type        = "Service"
      identifiers = ["pods.eks.amazonaws.com"]
    }

    # EKS puts the cluster, the namespace and the account into the session: the association below does not decide alone.
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/eks-cluster-arn"
      values   = ["arn:${local.partition}:eks:${data.aws_region.current.id}:${local.account}:cluster/${var.cluster_name}"]
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

data "aws_iam_policy_document" "objects" {
  for_each = var.workloads

  statement {
    sid       = "Buckets"
    actions   = local.bucket_actions
    resources = distinct([for place in concat(each.value.read, each.value.write) : aws_s3_bucket.this[place.bucket].arn])
  }

  dynamic "statement" {
    for_each = distinct(concat(each.value.read, each.value.write))
    content {
      actions   = local.list_actions
      resources = [aws_s3_bucket.this[statement.value.bucket].arn]

      condition {
        test     = "StringLike"
        variable = "s3:prefix"
        values   = ["${statement.value.prefix}*"]
      }
    }
  }

  # This right cannot be narrowed to a prefix: it shows the keys of everybody's unfinished uploads in the bucket.
  dynamic "statement" {
    for_each = [for place in each.value.write : place if place.prefix == ""]
    content {
      actions   = local.upload_actions
      resources = [aws_s3_bucket.this[statement.value.bucket].arn]
    }
  }

  dynamic "statement" {
    for_each = each.value.read
    content {
      actions   = local.read_actions
      resources = ["${aws_s3_bucket.this[statement.value.bucket].arn}/${statement.value.prefix}*"]
    }
  }

  dynamic "statement" {
    for_each = each.value.write
    content {
      actions   = local.write_actions
      resources = ["${aws_s3_bucket.this[statement.value.bucket].arn}/${statement.value.prefix}*"]
    }
  }

  statement {
    sid       = "Key"
    actions   = length(each.value.write) > 0 ? ["kms:Decrypt", "kms:GenerateDataKey"] : ["kms:Decrypt"]
    resources = [aws_kms_key.this.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${data.aws_region.current.id}.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "workload" {
  for_each = var.workloads

  name               = "${var.name}-${each.key}"
  assume_role_policy = data.aws_iam_policy_document.trust[each.key].json
}

resource "aws_iam_role_policy" "objects" {
  for_each = var.workloads

  name   = "objects"
  role   = aws_iam_role.workload[each.key].id
  policy = data.aws_iam_policy_document.objects[each.key].json
}

resource "aws_eks_pod_identity_association" "this" {
  for_each = var.workloads

  cluster_name    = var.cluster_name
  namespace       = each.value.namespace
  service_account = each.value.service_account
  role_arn        = aws_iam_role.workload[each.key].arn
}
