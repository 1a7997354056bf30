-- No row: sequences know visits, not their parts.
select {{ declared_columns(are_null=true) }}
where false
