mock_provider "aws" {
  source          = "./tests/aws"
  override_during = plan
}

variables {
  name              = "acme-ml"
  region            = "eu-central-1"
  administrators    = ["arn:aws:iam::123456789012:role/platform"]
  monthly_limit_usd = 5000
  alarm_emails      = ["platform@example.com"]
}

run "prod_has_the_gpus_that_its_flavors_promise_and_a_role_for_each_account" {
  command = plan

  module {
    source = "./environments/prod"
  }

  assert {
    condition     = { for name, pool in output.pools : pool.labels["shopfloor.io/pool"] => pool.max_gpus... } == { system = [0], cpu = [0, 0], gpu-ondemand = [16], gpu-spot = [32] }
    error_message = "The pools have other GPUs, or count to other flavors."
  }

  assert {
    condition     = keys(output.buckets) == ["artifacts", "data", "mlflow"]
    error_message = "The buckets are others than the stack's."
  }

  assert {
    condition     = length(output.roles) == 1 + 2 * length(setsubtract(fileset("../manifests/teams", "*.yaml"), ["kustomization.yaml"])) && contains(keys(output.roles), "mlflow")
    error_message = "MLflow, or an account of a team, has no role, or somebody else has one."
  }
}

run "dev_has_no_gpu_that_costs_while_nobody_uses_it" {
  command = plan

  module {
    source = "./environments/dev"
  }

  assert {
    condition     = { for name, pool in output.pools : name => pool.max_gpus if pool.max_gpus > 0 } == { gpu-spot = 2 }
    error_message = "The pools have other GPUs."
  }
}

run "the_bucket_of_the_states_keeps_old_ones_for_a_year" {
  command = plan

  module {
    source = "./state"
  }

  variables {
    bucket = "acme-ml-state"
  }

  assert {
    condition     = output.backend == "bucket = \"acme-ml-state\"\nregion = \"eu-central-1\"\n"
    error_message = "The environments look for their state elsewhere."
  }
}
