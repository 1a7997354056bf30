-- One row per cohort, year and frequent concept: the share of the year's visits that
-- tell it. Not of persons: how often they come changes over the years, too.
with

concepts as (

    select * from {{ ref('temporal_concepts') }}
    where concept_number <= 150

),

visits as (

    select
        cohort,
        visit_number,
        cast(extract(year from visit_start_date) as int) as visit_year
    from {{ ref('temporal_visits') }}

),

years as (

    select
        cohort,
        visit_year,
        count(*) as year_visits
    from visits
    group by 1, 2

),

counted as (

    select
        visits.cohort,
        visits.visit_year,
        visit_concepts.concept_number,
        count(*) as visits
    from {{ ref('temporal_visit_concepts') }} as visit_concepts
    inner join visits on visit_concepts.visit_number = visits.visit_number
    group by 1, 2, 3

),

final as (

    -- a year without a concept is a share of 0, not a gap in the curve
    select
        years.cohort,
        years.visit_year,
        concepts.source_table,
        concepts.concept_id,
        coalesce(counted.visits, 0) as visits,
        years.year_visits,
        coalesce(counted.visits, 0)
        / cast(years.year_visits as double) as share -- noqa: RF04
    from years
    cross join concepts
    left join counted
        on
            years.cohort = counted.cohort
            and years.visit_year = counted.visit_year
            and concepts.concept_number = counted.concept_number

)

select * from final
