# An alarm at half of the month's limit, at four fifths, at all of it, and when it will be passed.

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

module "budget" {
  source = "../.."

  name              = "acme-ml"
  monthly_limit_usd = 2000
  emails            = ["platform@example.com"]
  tag               = { key = "Project", value = "acme-ml" }
}

output "topic_arn" {
  description = "Topic that the alarms are sent to."
  value       = module.budget.topic_arn
}
