mock_provider "aws" {
  source          = "./tests/aws"
  override_during = plan
}

variables {
  name              = "acme-ml"
  monthly_limit_usd = 2000
  tag               = { key = "Project", value = "acme-ml" }
  emails            = ["platform@example.com", "finance@example.com"]
}

run "alarms_go_out_before_and_at_the_limit_and_by_the_forecast" {
  command = plan

  module {
    source = "./modules/budget"
  }

  assert {
    condition     = aws_budgets_budget.this.limit_amount == "2000" && aws_budgets_budget.this.time_unit == "MONTHLY"
    error_message = "The limit is another, or not a month's."
  }

  assert {
    condition     = toset([for alarm in aws_budgets_budget.this.notification : "${alarm.notification_type} ${alarm.threshold}"]) == toset(["ACTUAL 50", "ACTUAL 80", "ACTUAL 100", "FORECASTED 100"])
    error_message = "Alarms go out at other parts of the limit."
  }

  assert {
    condition     = alltrue([for alarm in aws_budgets_budget.this.notification : alarm.subscriber_sns_topic_arns == toset([aws_sns_topic.this.arn])])
    error_message = "An alarm goes elsewhere than to the topic."
  }

  assert {
    condition     = toset([for one in aws_sns_topic_subscription.email : one.endpoint]) == toset(["platform@example.com", "finance@example.com"])
    error_message = "Somebody who was named does not hear the alarms."
  }
}

run "only_what_carries_the_tag_is_counted" {
  command = plan

  module {
    source = "./modules/budget"
  }

  assert {
    condition     = [for filter in aws_budgets_budget.this.cost_filter : join(" ", filter.values)] == ["user:Project$acme-ml"]
    error_message = "The budget counts what is not the platform's."
  }

  assert {
    condition     = jsondecode(aws_ce_anomaly_monitor.this.monitor_specification).Tags.Values == ["acme-ml"]
    error_message = "The watch for surprises sees what is not the platform's."
  }
}

run "a_topic_takes_messages_of_this_accounts_billing_alone" {
  command = plan

  module {
    source = "./modules/budget"
  }

  assert {
    condition = alltrue([for statement in data.aws_iam_policy_document.topic.statement :
      alltrue([for condition in statement.condition : condition.variable == "aws:SourceAccount" && condition.values == tolist(["123456789012"])])
    && length(statement.condition) == 1])
    error_message = "Another account can raise an alarm."
  }

  assert {
    condition = alltrue(flatten([for policy in [data.aws_iam_policy_document.topic, data.aws_iam_policy_document.key] : [for statement in policy.statement : [for principal in statement.principals :
      principal.type == "Service" ? principal.identifiers == toset(["budgets.amazonaws.com", "costalerts.amazonaws.com"]) : principal.identifiers == toset(["arn:aws:iam::123456789012:root"])
    ]]]))
    error_message = "Others than the account's billing may use the topic or its key."
  }

  assert {
    condition     = aws_sns_topic.this.kms_master_key_id == aws_kms_key.this.arn
    error_message = "The topic is not encrypted."
  }
}

run "an_alarm_that_nobody_hears_is_refused" {
  command = plan

  module {
    source = "./modules/budget"
  }

  variables {
    emails = []
  }

  expect_failures = [var.emails]
}

run "more_alarms_than_a_budget_has_are_refused" {
  command = plan

  module {
    source = "./modules/budget"
  }

  variables {
    spent_percent    = [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    forecast_percent = [100]
  }

  expect_failures = [var.forecast_percent]
}
