# Where changes are tried: as small as it works, GPUs on spot alone, and nothing running that nobody asked for but two small
# nodes and one way out.

locals {
  folder = "${path.module}/../../../manifests/teams"
  teams  = [for file in fileset(local.folder, "*.yaml") : yamldecode(file("${local.folder}/${file}")).name if file != "kustomization.yaml"]
}

module "cluster" {
  source = "../../modules/gpu-cluster-eks"

  name                 = var.name
  kubernetes_version   = var.kubernetes_version
  availability_zones   = [for zone in var.zones : "${var.region}${zone}"]
  nat_gateway_per_zone = false
  administrators       = var.administrators
  members              = var.members
  public_access_cidrs  = var.public_access_cidrs
  log_days             = 30

  cpu_pools = {
    # Controllers, MLflow and PostgreSQL: 8 GiB are enough for these, and a second node for when one is replaced.
    system = { instance_types = ["m6i.large", "m5.large"], min = 2, max = 4 }
    # Steps: 8 processors and 32 GiB hold the largest step of the examples twice.
    cpu-spot = { instance_types = ["m6i.2xlarge", "m5.2xlarge", "m6a.2xlarge"], capacity = "SPOT", max = 6, flavor = "cpu" }
  }

  gpu_pools = {
    # One GPU of 24 GB a node, of three kinds: spot is there more often for who takes what there is.
    gpu-spot = { instance_types = ["g5.2xlarge", "g6.2xlarge", "g5.4xlarge"], gpus = 1, capacity = "SPOT", max = 2 }
  }
}

module "objects" {
  source = "../../modules/object-storage"

  name              = var.name
  access_log_bucket = "${var.name}-access-logs"
  cluster_name      = module.cluster.cluster_name
  force_destroy     = var.delete_objects

  buckets = {
    artifacts = var.name
    data      = "${var.name}-data"
    mlflow    = "${var.name}-mlflow"
  }

  # A team reaches what is below its own name, as `shopfloor teams render` has it everywhere else.
  workloads = merge(
    { mlflow = { namespace = "shopfloor-system", service_account = "mlflow", write = [{ bucket = "mlflow", prefix = "" }] } },
    { for pair in setproduct(local.teams, ["shopfloor-run", "serve"]) : "${pair[0]}-${pair[1]}" => {
      namespace       = pair[0]
      service_account = pair[1]
      write           = [for bucket in ["artifacts", "data"] : { bucket = bucket, prefix = "${pair[0]}/" }]
    } },
  )
}

module "budget" {
  source = "../../modules/budget"

  name              = var.name
  monthly_limit_usd = var.monthly_limit_usd
  emails            = var.alarm_emails
  tag               = { key = "Project", value = var.name }
  surprise_usd      = 50
}
