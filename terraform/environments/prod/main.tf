# What teams rely on: three zones, a way out of each, GPUs on demand for what must be done and on spot for what can wait.

locals {
  folder = "${path.module}/../../../manifests/teams"
  teams  = [for file in fileset(local.folder, "*.yaml") : yamldecode(file("${local.folder}/${file}")).name if file != "kustomization.yaml"]
}

module "cluster" {
  source = "../../modules/gpu-cluster-eks"

  name                 = var.name
  kubernetes_version   = var.kubernetes_version
  availability_zones   = [for zone in var.zones : "${var.region}${zone}"]
  nat_gateway_per_zone = true
  administrators       = var.administrators
  members              = var.members
  public_access_cidrs  = var.public_access_cidrs
  log_days             = 365

  # Together the pools are what manifests/base/kueue says of each flavor: quotas are given of that.
  cpu_pools = {
    # Controllers, MLflow and PostgreSQL: a node for each zone, so that a zone may fail. Not Kueue's.
    system = { instance_types = ["m6i.xlarge", "m5.xlarge"], min = 3, max = 6 }
    # 8 CPUs and 32 GiB a node. A third of them on demand, so that there is something when there is nothing on spot.
    cpu-ondemand = { instance_types = ["m6i.2xlarge", "m5.2xlarge"], max = 8, flavor = "cpu" }
    # Many kinds, for spot is there more often for who takes what there is.
    cpu-spot = { instance_types = ["m6i.2xlarge", "m5.2xlarge", "m6a.2xlarge", "m5a.2xlarge"], capacity = "SPOT", max = 24, flavor = "cpu" }
  }

  # Four GPUs of 24 GB, 48 CPUs and 192 GiB a node. AWS grants GPUs by a quota of CPUs: 192 on demand and 384 on spot are
  # asked for beforehand.
  gpu_pools = {
    gpu-ondemand = { instance_types = ["g5.12xlarge"], gpus = 4, max = 4, disk_gib = 500 }
    gpu-spot     = { instance_types = ["g5.12xlarge", "g6.12xlarge"], gpus = 4, capacity = "SPOT", max = 8, disk_gib = 500 }
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
  surprise_usd      = 250
}
