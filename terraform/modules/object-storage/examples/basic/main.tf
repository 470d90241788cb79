# Two teams that share a bucket: each writes below its own prefix, and both read the data.

terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100, < 7"
    }
  }
}

provider "aws" {
  region = "eu-central-1"
}

module "objects" {
  source = "../.."

  name              = "acme-ml"
  buckets           = { artifacts = "acme-ml", data = "acme-ml-data" }
  access_log_bucket = "acme-ml-access-logs"
  cluster_name      = "acme-ml"

  workloads = { for team in ["forecasting", "vision"] : team => {
    namespace       = team
    service_account = "shopfloor-run"
    read            = [{ bucket = "data", prefix = "" }]
    write           = [{ bucket = "artifacts", prefix = "${team}/" }]
  } }
}

output "buckets" {
  description = "Names of the buckets by what they hold."
  value       = module.objects.buckets
}
