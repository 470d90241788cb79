variable "name" {
  description = "What the key, the roles and their policies are called after. Lower-case letters, digits and hyphens."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,28}[a-z0-9]$", var.name))
    error_message = "The name needs 3 to 30 lower-case letters, digits and hyphens, beginning with a letter and not ending in a hyphen."
  }
}

variable "buckets" {
  description = "Names of the buckets by what they hold. The names of S3 buckets are the world's: begin them with something of your own."
  type        = map(string)

  validation {
    condition     = alltrue([for bucket in values(var.buckets) : can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", bucket))])
    error_message = "A bucket's name needs 3 to 63 lower-case letters, digits and hyphens, and neither begins nor ends with a hyphen."
  }

  validation {
    condition     = length(var.buckets) > 0 && length(distinct(values(var.buckets))) == length(var.buckets)
    error_message = "At least one bucket is needed, and each needs a name of its own."
  }
}

variable "access_log_bucket" {
  description = "Name of the bucket that takes the access logs of the others."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.access_log_bucket)) && !contains(values(var.buckets), var.access_log_bucket)
    error_message = "The bucket of the access logs needs a valid name that no other bucket has: logs written into the bucket they tell of would never end."
  }
}

variable "access_log_days" {
  description = "Days that access logs are kept."
  type        = number
  default     = 90

  validation {
    condition     = var.access_log_days >= 1 && floor(var.access_log_days) == var.access_log_days
    error_message = "Access logs are kept for a whole number of days, at least 1."
  }
}

variable "old_version_days" {
  description = "Days that a deleted or replaced object can still be brought back."
  type        = number
  default     = 30

  validation {
    condition     = var.old_version_days >= 1 && floor(var.old_version_days) == var.old_version_days
    error_message = "Old versions are kept for a whole number of days, at least 1."
  }
}

variable "unfinished_upload_days" {
  description = "Days after which the parts of an upload that never ended are removed."
  type        = number
  default     = 7

  validation {
    condition     = var.unfinished_upload_days >= 1 && floor(var.unfinished_upload_days) == var.unfinished_upload_days
    error_message = "Unfinished uploads are kept for a whole number of days, at least 1."
  }
}

variable "force_destroy" {
  description = "Whether `terraform destroy` may delete buckets that still hold objects, all versions with them."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = contains([true, false], var.force_destroy)
    error_message = "Either true or false."
  }
}

variable "cluster_name" {
  description = "EKS cluster whose pods get the roles of `workloads`. Without one no role is made."
  type        = string
  default     = null

  validation {
    condition     = var.cluster_name == null || can(regex("^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$", var.cluster_name))
    error_message = "The cluster's name has up to 100 letters, digits, hyphens and underscores."
  }
}

variable "workloads" {
  description = "Service accounts of the cluster, and the places each may read, or read and write. A place is a key of `buckets` and how the objects' keys begin; an empty prefix is the whole bucket."
  type = map(object({
    namespace       = string
    service_account = string
    read            = optional(list(object({ bucket = string, prefix = string })), [])
    write           = optional(list(object({ bucket = string, prefix = string })), [])
  }))
  default = {}

  validation {
    condition     = length(var.workloads) == 0 || var.cluster_name != null
    error_message = "Workloads need cluster_name: the cluster that their service accounts are in."
  }

  validation {
    condition = alltrue(flatten([
      for workload in values(var.workloads) : [for place in concat(workload.read, workload.write) : contains(keys(var.buckets), place.bucket)]
    ]))
    error_message = "A place names a bucket that is not in `buckets`."
  }

  validation {
    condition = alltrue(flatten([
      for workload in values(var.workloads) : [for place in concat(workload.read, workload.write) : can(regex("^([A-Za-z0-9_.=-]+/)*$", place.prefix))]
    ]))
    error_message = "A prefix is empty or ends with a slash, and holds no wildcard: `teams/a` would reach into `teams/ab`."
  }

  validation {
    condition     = alltrue([for workload in values(var.workloads) : length(concat(workload.read, workload.write)) > 0])
    error_message = "A workload that may read nothing and write nothing needs no role."
  }

  validation {
    condition     = alltrue([for key in keys(var.workloads) : can(regex("^[a-z0-9-]+$", key)) && length("${var.name}-${key}") <= 64])
    error_message = "A role is called after `name` and the workload: lower-case letters, digits and hyphens, 64 characters together."
  }

  validation {
    condition     = length(distinct([for workload in values(var.workloads) : "${workload.namespace}/${workload.service_account}"])) == length(var.workloads)
    error_message = "A service account has one role: name each account once."
  }
}
