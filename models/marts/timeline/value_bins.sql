-- One row per event token and bin of its numbers.
select
    cast(null as {{ dbt.type_string() }}) as event_token,
    cast(null as int) as bin,
    cast(null as double) as low,
    cast(null as double) as high,
    cast(null as bigint) as train_count
where false
