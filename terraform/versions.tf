# Nothing is made from here: `terraform test` finds the tests of every module below tests/, and needs a place to stand.
terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100, < 7"
    }
  }
}
