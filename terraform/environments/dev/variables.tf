variable "name" {
  description = "Name of the cluster, and how the buckets are called: one that is nobody else's in the world, such as acme-ml-ENVIRONMENT."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,28}[a-z0-9]$", var.name))
    error_message = "The name needs 3 to 30 lower-case letters, digits and hyphens, beginning with a letter and not ending in a hyphen."
  }
}

variable "region" {
  description = "Region of all of it. Look first whether it has the GPUs: not every region and zone does."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "The region is one of AWS's, such as eu-central-1."
  }
}

variable "zones" {
  description = "Letters of the region's zones that the cluster spans."
  type        = list(string)
  default     = ["a", "b"]

  validation {
    condition     = length(var.zones) >= 2 && alltrue([for zone in var.zones : can(regex("^[a-z]$", zone))])
    error_message = "The zones are two letters or more, such as [\"a\", \"b\"]."
  }
}

variable "kubernetes_version" {
  description = "Minor version of Kubernetes. Raise it by one at a time, and look at the versions that the operators take first."
  type        = string
  default     = "1.35"

  validation {
    condition     = can(regex("^1\\.[0-9]+$", var.kubernetes_version))
    error_message = "The version is a minor one, such as 1.35."
  }
}

variable "administrators" {
  description = "ARNs of the IAM roles and users that may do everything in the cluster. One of them runs kubectl after this."
  type        = set(string)

  validation {
    condition     = length(var.administrators) > 0
    error_message = "At least one administrator is needed: nobody could enter the cluster without."
  }
}

variable "members" {
  description = "ARNs of IAM roles and users, and the groups of Kubernetes that each is in: those that the teams' files name."
  type        = map(set(string))
  default     = {}

  validation {
    condition     = alltrue([for groups in values(var.members) : length(groups) > 0])
    error_message = "Each member is in one group at least."
  }
}

variable "public_access_cidrs" {
  description = "Networks from which the API server can be reached over the internet, such as an office's. None: only from inside the network."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.public_access_cidrs : can(cidrhost(cidr, 0))])
    error_message = "Each is an IPv4 block such as 203.0.113.0/24."
  }
}

variable "monthly_limit_usd" {
  description = "US dollars a month that are meant to be enough. Nothing is stopped above it: the alarms tell people."
  type        = number

  validation {
    condition     = var.monthly_limit_usd > 0
    error_message = "The limit of a month is above 0 US dollars."
  }
}

variable "alarm_emails" {
  description = "Addresses that hear of costs."
  type        = set(string)

  validation {
    condition     = length(var.alarm_emails) > 0
    error_message = "At least one address is needed: an alarm that nobody hears is none."
  }
}

variable "delete_objects" {
  description = "Whether `terraform destroy` may delete what the buckets hold, all versions of it. It has to be applied before the destroy."
  type        = bool
  default     = false
  nullable    = false

  validation {
    condition     = contains([true, false], var.delete_objects)
    error_message = "Either true or false."
  }
}
