-- One row per cohort, concept, unit and quantile of its numbers. Actual values, not
-- values between them: numbers are often rounded, and their steps must stay steps.
with

events as (

    select
        cohort,
        source_table,
        concept_id,
        unit_concept_id,
        value_as_number
    from {{ source('cohorts', 'events') }}
    where value_as_number is not null

),

counted as (

    select
        cohort,
        source_table,
        concept_id,
        unit_concept_id,
        count(*) as value_count,
        stddev_pop(value_as_number) as standard_deviation,
        quantile_disc(value_as_number, [
            {%- for i in range(1, 200) %}{{ i }} / 200.0{{ ', ' if not loop.last }}
            {%- endfor -%}
        ]) as quantiles
    from events
    group by 1, 2, 3, 4

),

final as (

    select
        cohort,
        source_table,
        concept_id,
        unit_concept_id,
        value_count,
        standard_deviation,
        unnest(range(1, 200)) / 200.0 as quantile,
        unnest(quantiles) as value_as_number
    from counted

)

select * from final
