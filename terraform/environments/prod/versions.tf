terraform {
  required_version = ">= 1.11"

  # The only version that this was planned with. A newer one: raise it, run `terraform plan`, and look.
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }

  # Bucket and region stand in ../backend.hcl, which `terraform init -backend-config` reads.
  backend "s3" {
    key          = "prod/terraform.tfstate"
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region = var.region

  default_tags {
    tags = {
      Project     = var.name
      Environment = "prod"
    }
  }
}
