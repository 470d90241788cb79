# A cluster with one pool for its own services and one GPU that is there while something needs it.

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

module "cluster" {
  source = "../.."

  name               = "acme-ml"
  kubernetes_version = "1.35"
  availability_zones = ["eu-central-1a", "eu-central-1b"]
  administrators     = ["arn:aws:iam::123456789012:role/platform"]
  members            = { "arn:aws:iam::123456789012:role/forecasting" = ["forecasting"] }

  cpu_pools = {
    system = { instance_types = ["m6i.large"], min = 2, max = 4 }
  }

  gpu_pools = {
    gpu-spot = { instance_types = ["g5.2xlarge", "g6.2xlarge"], gpus = 1, capacity = "SPOT", max = 2 }
  }
}

output "kubeconfig_command" {
  description = "Command that writes how to reach the cluster into ~/.kube/config."
  value       = module.cluster.kubeconfig_command
}
