mock_provider "aws" {
  source          = "./tests/aws"
  override_during = plan
}

variables {
  name              = "acme-ml"
  buckets           = { artifacts = "acme-ml", data = "acme-ml-data" }
  access_log_bucket = "acme-ml-access-logs"
  cluster_name      = "acme"
  workloads = {
    forecasting = {
      namespace       = "forecasting"
      service_account = "shopfloor-run"
      read            = [{ bucket = "data", prefix = "" }]
      write           = [{ bucket = "artifacts", prefix = "forecasting/" }]
    }
    reader = {
      namespace       = "vision"
      service_account = "reader"
      read            = [{ bucket = "data", prefix = "images/" }]
    }
    mlflow = {
      namespace       = "shopfloor-system"
      service_account = "mlflow"
      write           = [{ bucket = "artifacts", prefix = "" }]
    }
  }
}

override_resource {
  target          = aws_s3_bucket.this["artifacts"]
  values          = { arn = "arn:aws:s3:::acme-ml", id = "acme-ml" }
  override_during = plan
}

override_resource {
  target          = aws_s3_bucket.this["data"]
  values          = { arn = "arn:aws:s3:::acme-ml-data", id = "acme-ml-data" }
  override_during = plan
}

run "every_bucket_is_private_versioned_encrypted_and_logged" {
  command = plan

  module {
    source = "./modules/object-storage"
  }

  assert {
    condition = alltrue([for block in concat(values(aws_s3_bucket_public_access_block.this), [aws_s3_bucket_public_access_block.access_logs]) :
    block.block_public_acls && block.block_public_policy && block.ignore_public_acls && block.restrict_public_buckets])
    error_message = "A bucket can be made public."
  }

  assert {
    condition = alltrue([for bucket in concat(values(aws_s3_bucket_versioning.this), [aws_s3_bucket_versioning.access_logs]) :
    bucket.versioning_configuration[0].status == "Enabled"])
    error_message = "A bucket keeps no versions."
  }

  assert {
    condition = alltrue([for bucket in aws_s3_bucket_server_side_encryption_configuration.this :
      alltrue([for rule in bucket.rule : rule.bucket_key_enabled && alltrue([for way in rule.apply_server_side_encryption_by_default :
    way.sse_algorithm == "aws:kms" && way.kms_master_key_id == aws_kms_key.this.arn])])])
    error_message = "A bucket is not encrypted with the module's key."
  }

  assert {
    condition     = alltrue([for key, bucket in var.buckets : aws_s3_bucket_logging.this[key].target_prefix == "${bucket}/"])
    error_message = "A bucket's requests are not logged below its name."
  }

  assert {
    condition     = alltrue([for bucket in aws_s3_bucket.this : !bucket.force_destroy]) && !aws_s3_bucket.access_logs.force_destroy
    error_message = "A slip can delete what is in a bucket."
  }

  assert {
    condition     = aws_kms_key.this.enable_key_rotation && aws_kms_key.this.deletion_window_in_days == 30
    error_message = "The key is not changed each year, or can be deleted before somebody notices."
  }

  assert {
    condition = alltrue([for policy in data.aws_iam_policy_document.encrypted_transport : anytrue([for statement in policy.statement :
    statement.effect == "Deny" && alltrue([for condition in statement.condition : condition.variable == "aws:SecureTransport" && condition.values == tolist(["false"])])])])
    error_message = "A bucket can be read without TLS."
  }
}

run "old_versions_and_unfinished_uploads_go_after_their_days" {
  command = plan

  module {
    source = "./modules/object-storage"
  }

  variables {
    old_version_days       = 14
    unfinished_upload_days = 3
  }

  assert {
    condition = alltrue([for bucket in aws_s3_bucket_lifecycle_configuration.this : alltrue([for rule in bucket.rule :
      rule.status == "Enabled" && rule.noncurrent_version_expiration[0].noncurrent_days == 14
    && rule.abort_incomplete_multipart_upload[0].days_after_initiation == 3])])
    error_message = "A bucket keeps old versions or parts of uploads for other days than were asked for."
  }
}

run "a_workload_reaches_its_own_prefix_and_nothing_else" {
  command = plan

  module {
    source = "./modules/object-storage"
  }

  assert {
    condition = toset(flatten([for statement in data.aws_iam_policy_document.objects["forecasting"].statement : statement.resources if contains(statement.actions, "s3:PutObject")])) == toset([
      "arn:aws:s3:::acme-ml/forecasting/*",
    ])
    error_message = "A team writes elsewhere than below its prefix."
  }

  assert {
    condition = toset(flatten([for statement in data.aws_iam_policy_document.objects["forecasting"].statement : statement.resources if contains(statement.actions, "s3:GetObject")])) == toset([
      "arn:aws:s3:::acme-ml/forecasting/*", "arn:aws:s3:::acme-ml-data/*",
    ])
    error_message = "A team reads elsewhere than it was given."
  }

  assert {
    condition = toset(flatten([for statement in data.aws_iam_policy_document.objects["forecasting"].statement : [for condition in statement.condition : condition.values]
    if contains(statement.actions, "s3:ListBucket") && contains(statement.resources, "arn:aws:s3:::acme-ml")])) == toset(["forecasting/*"])
    error_message = "A team lists what is not below its prefix."
  }

  assert {
    condition = alltrue([for statement in concat(data.aws_iam_policy_document.objects["forecasting"].statement, data.aws_iam_policy_document.objects["reader"].statement) :
    !contains(statement.actions, "s3:ListBucketMultipartUploads")])
    error_message = "A workload with a prefix sees the keys of everybody's uploads."
  }

  assert {
    condition = alltrue(flatten([for statement in data.aws_iam_policy_document.objects["reader"].statement : [for action in statement.actions :
    can(regex("^(s3:(Get|List)|kms:Decrypt$)", action))]]))
    error_message = "A workload that only reads may do more."
  }

  assert {
    condition     = alltrue(flatten([for policy in data.aws_iam_policy_document.objects : [for statement in policy.statement : [for action in statement.actions : !strcontains(action, "*")]]]))
    error_message = "A right is given by a wildcard."
  }
}

run "only_its_service_account_takes_a_role" {
  command = plan

  module {
    source = "./modules/object-storage"
  }

  assert {
    condition = { for condition in data.aws_iam_policy_document.trust["forecasting"].statement[0].condition : condition.variable => condition.values[0] } == {
      "aws:RequestTag/eks-cluster-arn"            = "arn:aws:eks:eu-central-1:123456789012:cluster/acme"
      "aws:RequestTag/kubernetes-namespace"       = "forecasting"
      "aws:RequestTag/kubernetes-service-account" = "shopfloor-run"
    }
    error_message = "Another account, namespace or cluster can take the role."
  }

  assert {
    condition = { for key, one in aws_eks_pod_identity_association.this : key => "${one.cluster_name} ${one.namespace} ${one.service_account}" } == {
      forecasting = "acme forecasting shopfloor-run"
      reader      = "acme vision reader"
      mlflow      = "acme shopfloor-system mlflow"
    }
    error_message = "EKS gives the role to another account than was asked for."
  }
}

run "a_bucket_that_logs_itself_is_refused" {
  command = plan

  module {
    source = "./modules/object-storage"
  }

  variables {
    access_log_bucket = "acme-ml"
  }

  expect_failures = [var.access_log_bucket]
}

run "bad_workloads_are_refused" {
  command = plan

  module {
    source = "./modules/object-storage"
  }

  variables {
    workloads = {
      open = {
        namespace       = "a"
        service_account = "b"
        write           = [{ bucket = "artifacts", prefix = "team-a" }]
      }
    }
  }

  expect_failures = [var.workloads]
}

run "workloads_without_their_cluster_are_refused" {
  command = plan

  module {
    source = "./modules/object-storage"
  }

  variables {
    cluster_name = null
  }

  expect_failures = [var.workloads]
}
