output "buckets" {
  description = "Names of the buckets by what they hold."
  value       = { for key, bucket in aws_s3_bucket.this : key => bucket.id }
}

output "endpoint" {
  description = "Address of S3 in the region, for `s3_endpoint_url` of a profile."
  value       = "https://s3.${data.aws_region.current.id}.amazonaws.com"
}

output "key_arn" {
  description = "Key that the objects are encrypted with. Who deletes it loses every object."
  value       = aws_kms_key.this.arn
}

output "role_arns" {
  description = "Roles of the workloads' service accounts."
  value       = { for key, role in aws_iam_role.workload : key => role.arn }
}
