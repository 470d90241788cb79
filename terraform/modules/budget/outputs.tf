output "topic_arn" {
  description = "Topic that the alarms are sent to; a chat or a pager can subscribe to it beside the addresses."
  value       = aws_sns_topic.this.arn
}

output "budget_name" {
  description = "Name of the budget in the account's billing pages."
  value       = aws_budgets_budget.this.name
}
