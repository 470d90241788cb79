variable "name" {
  description = "Name of the cluster, and what its network, key and roles are called after."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,28}[a-z0-9]$", var.name))
    error_message = "The name needs 3 to 30 lower-case letters, digits and hyphens, beginning with a letter and not ending in a hyphen."
  }
}

variable "kubernetes_version" {
  description = "Minor version of Kubernetes. A cluster goes up one minor version at a time, and never down."
  type        = string

  validation {
    condition     = can(regex("^1\\.(3[4-9]|[4-9][0-9])$", var.kubernetes_version))
    error_message = "The version is a minor one, such as 1.35, and at least 1.34: what GPUs are claimed with (resource.k8s.io/v1) begins there."
  }
}

variable "vpc_cidr" {
  description = "Addresses of the network. Each zone's nodes and pods have a sixteenth of it: some four thousand of a /16."
  type        = string
  default     = "10.0.0.0/16"

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && try(tonumber(split("/", var.vpc_cidr)[1]) >= 16 && tonumber(split("/", var.vpc_cidr)[1]) <= 20, false)
    error_message = "The network is an IPv4 block from /16 to /20, such as 10.0.0.0/16."
  }
}

variable "service_cidr" {
  description = "Addresses of Kubernetes' services, which nothing else may have. The first is the API server's: NetworkPolicies of manifests/ name it."
  type        = string
  default     = "172.20.0.0/16"

  validation {
    condition     = can(cidrhost(var.service_cidr, 1)) && try(tonumber(split("/", var.service_cidr)[1]) >= 12 && tonumber(split("/", var.service_cidr)[1]) <= 24, false)
    error_message = "The services' addresses are an IPv4 block from /12 to /24, such as 172.20.0.0/16."
  }
}

variable "availability_zones" {
  description = "Zones that the cluster spans, such as eu-central-1a."
  type        = list(string)

  validation {
    condition     = length(var.availability_zones) >= 2 && length(var.availability_zones) <= 6 && length(distinct(var.availability_zones)) == length(var.availability_zones)
    error_message = "EKS needs 2 zones at least; 6 different ones at most."
  }
}

variable "nat_gateway_per_zone" {
  description = "Whether each zone has a way out of its own. With one for all, a zone's failure cuts the others off, and data between zones is paid for."
  type        = bool
  default     = true
  nullable    = false

  validation {
    condition     = contains([true, false], var.nat_gateway_per_zone)
    error_message = "Either true or false."
  }
}

variable "public_access_cidrs" {
  description = "Networks from which the API server can be reached over the internet. None: only from inside the network."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.public_access_cidrs : can(cidrhost(cidr, 0)) && try(tonumber(split("/", cidr)[1]) >= 8, false)])
    error_message = "Each is an IPv4 block such as 203.0.113.0/24, and none opens the API server to the whole internet."
  }
}

variable "administrators" {
  description = "ARNs of the IAM roles and users that may do everything in the cluster. Who creates it is not one by that."
  type        = set(string)

  validation {
    condition     = length(var.administrators) > 0 && alltrue([for arn in var.administrators : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(role|user)/.+$", arn))])
    error_message = "At least one administrator is needed, each the ARN of an IAM role or user: nobody could enter a cluster without."
  }
}

variable "members" {
  description = "ARNs of IAM roles and users, and the groups of Kubernetes that each is in: those that the teams' files name. What a group may do, the manifests say."
  type        = map(set(string))
  default     = {}

  validation {
    condition     = alltrue([for arn in keys(var.members) : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:(role|user)/.+$", arn)) && !contains(var.administrators, arn)])
    error_message = "Each member is the ARN of an IAM role or user that is not an administrator already."
  }

  validation {
    condition     = alltrue(flatten([for groups in values(var.members) : [length(groups) > 0, [for group in groups : !can(regex("^(system|eks|aws|amazon|iam):", group))]]]))
    error_message = "Each member is in one group at least, and in none that begins with system:, eks:, aws:, amazon: or iam:, which EKS keeps for itself."
  }
}

variable "cpu_pools" {
  description = "Pools of nodes without a GPU by name. One of them, at least, always has a node: the cluster's own services run there. `flavor` is the flavor of Kueue that its nodes count to, the pool's name where it is not said."
  type = map(object({
    instance_types = list(string)
    capacity       = optional(string, "ON_DEMAND")
    min            = optional(number, 0)
    max            = number
    flavor         = optional(string)
    disk_gib       = optional(number, 100)
    zones          = optional(list(string))
  }))

  validation {
    condition     = anytrue([for pool in values(var.cpu_pools) : pool.min >= 1 && pool.capacity == "ON_DEMAND"])
    error_message = "One pool needs min >= 1 and capacity ON_DEMAND: without a node that stays, nothing scales the others up from zero."
  }

  validation {
    condition     = alltrue([for name, pool in var.cpu_pools : can(regex("^[a-z][a-z0-9-]{0,30}[a-z0-9]$", name)) && length(pool.instance_types) > 0])
    error_message = "A pool's name has 2 to 32 lower-case letters, digits and hyphens, and a pool has one instance type at least."
  }

  validation {
    condition     = alltrue([for pool in values(var.cpu_pools) : contains(["ON_DEMAND", "SPOT"], pool.capacity) && pool.min >= 0 && pool.max >= max(pool.min, 1) && pool.disk_gib >= 50])
    error_message = "A pool's capacity is ON_DEMAND or SPOT, 0 <= min <= max, max is at least 1, and its nodes' disks have 50 GiB at least."
  }
}

variable "gpu_pools" {
  description = "Pools of nodes with NVIDIA GPUs by name; `flavor` as in `cpu_pools`. `gpus` is how many a node has: what the autoscaler knows of a pool that has no node."
  type = map(object({
    instance_types = list(string)
    gpus           = number
    capacity       = optional(string, "ON_DEMAND")
    min            = optional(number, 0)
    max            = number
    flavor         = optional(string)
    disk_gib       = optional(number, 200)
    zones          = optional(list(string))
  }))
  default = {}

  validation {
    condition     = alltrue([for name, pool in var.gpu_pools : can(regex("^[a-z][a-z0-9-]{0,30}[a-z0-9]$", name)) && !contains(keys(var.cpu_pools), name) && length(pool.instance_types) > 0])
    error_message = "A pool's name has 2 to 32 lower-case letters, digits and hyphens, no other pool has it, and a pool has one instance type at least."
  }

  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : pool.gpus >= 1 && floor(pool.gpus) == pool.gpus])
    error_message = "A node of a GPU pool has one GPU or more, and every instance type of the pool as many."
  }

  validation {
    condition     = alltrue([for pool in values(var.gpu_pools) : contains(["ON_DEMAND", "SPOT"], pool.capacity) && pool.min >= 0 && pool.max >= max(pool.min, 1) && pool.disk_gib >= 100])
    error_message = "A pool's capacity is ON_DEMAND or SPOT, 0 <= min <= max, max is at least 1, and its nodes' disks have 100 GiB at least: images with CUDA are large."
  }

  validation {
    condition     = alltrue(flatten([for pool in concat(values(var.gpu_pools), values(var.cpu_pools)) : [for zone in coalesce(pool.zones, []) : contains(var.availability_zones, zone)]]))
    error_message = "A pool's zones are some of the cluster's availability_zones."
  }
}

variable "addon_versions" {
  description = "Versions of EKS add-ons by name. One that is not named gets what EKS holds for right when it is made, and keeps it."
  type        = map(string)
  default     = {}

  validation {
    condition = alltrue([for name in keys(var.addon_versions) : contains([
      "aws-ebs-csi-driver", "coredns", "eks-node-monitoring-agent", "eks-pod-identity-agent", "kube-proxy", "metrics-server", "vpc-cni",
    ], name)])
    error_message = "Only versions of the add-ons that the module installs can be named."
  }
}

variable "log_days" {
  description = "Days that the logs of the API server and of refused connections are kept."
  type        = number
  default     = 365

  validation {
    condition     = contains([30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 3653], var.log_days)
    error_message = "CloudWatch keeps logs for 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827 or 3653 days."
  }
}
