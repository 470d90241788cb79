# Each example can be planned, and makes what its first line says.

mock_provider "aws" {
  source          = "./tests/aws"
  override_during = plan
}

run "the_example_of_gpu_cluster_eks_can_be_planned" {
  command = plan

  module {
    source = "./modules/gpu-cluster-eks/examples/basic"
  }

  assert {
    condition     = output.kubeconfig_command == "aws eks update-kubeconfig --region eu-central-1 --name acme-ml"
    error_message = "The command that reaches the cluster is another."
  }
}

run "the_example_of_object_storage_can_be_planned" {
  command = plan

  module {
    source = "./modules/object-storage/examples/basic"
  }

  assert {
    condition     = keys(output.buckets) == ["artifacts", "data"]
    error_message = "The buckets are others."
  }
}

run "the_example_of_budget_can_be_planned" {
  command = plan

  module {
    source = "./modules/budget/examples/basic"
  }

  assert {
    condition     = output.topic_arn == "arn:aws:sns:eu-central-1:123456789012:one"
    error_message = "The alarms go to another topic."
  }
}
