# The bucket that the environments keep their state in. It is made once, before them, and its own state is a file here.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { Project = var.bucket }
  }
}

variable "region" {
  description = "Region of the bucket."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "The region is one of AWS's, such as eu-central-1."
  }
}

variable "bucket" {
  description = "Name of the bucket: one that is nobody else's in the world, such as acme-ml-state."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,28}[a-z0-9]$", var.bucket))
    error_message = "The name needs 3 to 30 lower-case letters, digits and hyphens, beginning with a letter and not ending in a hyphen."
  }
}

variable "delete_objects" {
  description = "Whether `terraform destroy` may delete what the buckets hold, all versions of it. It has to be applied before the destroy."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = contains([true, false], var.delete_objects)
    error_message = "Either true or false."
  }
}

module "bucket" {
  source = "../modules/object-storage"

  name              = var.bucket
  buckets           = { state = var.bucket }
  access_log_bucket = "${var.bucket}-access-logs"
  # A state is small, and the one before a mistake may be asked for months later.
  old_version_days = 365
  force_destroy    = var.delete_objects
}

output "backend" {
  description = "What backend.hcl says."
  value       = "bucket = \"${var.bucket}\"\nregion = \"${var.region}\"\n"
}
