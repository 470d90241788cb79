variable "name" {
  description = "What the budget, the topic and the watch are called after."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,48}[a-z0-9]$", var.name))
    error_message = "The name needs 3 to 50 lower-case letters, digits and hyphens, beginning with a letter and not ending in a hyphen."
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

variable "tag" {
  description = "Tag that marks what is counted. It has to be active as a cost allocation tag of the account that pays."
  type        = object({ key = string, value = string })

  validation {
    condition     = can(regex("^[A-Za-z0-9_:/.@+-]+$", var.tag.key)) && can(regex("^[A-Za-z0-9_:/.@+-]+$", var.tag.value))
    error_message = "The tag needs a key and a value, without spaces and without a dollar sign, which divides the two in a budget."
  }
}

variable "emails" {
  description = "Addresses that the alarms go to. Each gets one letter first, and nothing more before the link in it was followed."
  type        = set(string)

  validation {
    condition     = length(var.emails) > 0 && alltrue([for email in var.emails : can(regex("^[^@[:space:]]+@[^@[:space:]]+$", email))])
    error_message = "At least one address is needed, each with an @: an alarm that nobody hears is none."
  }
}

variable "spent_percent" {
  description = "Parts of the limit, in percent, at which spending raises an alarm."
  type        = set(number)
  default     = [50, 80, 100]

  validation {
    condition     = length(var.spent_percent) > 0 && alltrue([for percent in var.spent_percent : percent > 0 && percent <= 1000])
    error_message = "At least one part is needed, each above 0 and at most 1000 percent."
  }
}

variable "forecast_percent" {
  description = "Parts of the limit, in percent, at which the month's forecast raises an alarm."
  type        = set(number)
  default     = [100]

  validation {
    condition     = alltrue([for percent in var.forecast_percent : percent > 0 && percent <= 1000]) && length(var.forecast_percent) + length(var.spent_percent) <= 10
    error_message = "Each part is above 0 and at most 1000 percent, and a budget has at most 10 alarms, spent and forecast together."
  }
}

variable "surprise_usd" {
  description = "US dollars above what AWS expects of these days, at which an alarm goes out at once: a pool that was left on."
  type        = number
  default     = 100

  validation {
    condition     = var.surprise_usd > 0
    error_message = "The surprise is above 0 US dollars."
  }
}
