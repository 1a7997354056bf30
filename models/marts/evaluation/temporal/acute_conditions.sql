-- One row per acute condition with a season, by its strength in the training cohort:
-- seldom told again at the next visit, and not in all months alike.
with

visit_concepts as (

    select
        visit_concepts.*,
        concepts.concept_id
    from {{ ref('temporal_visit_concepts') }} as visit_concepts
    inner join {{ ref('temporal_concepts') }} as concepts
        on visit_concepts.concept_number = concepts.concept_number
    where
        visit_concepts.cohort = 'train'
        and concepts.source_table = 'condition_occurrence'

),

visits as (

    select * from {{ ref('temporal_visits') }}
    where cohort = 'train'

),

told as (

    select
        visit_concepts.concept_id,
        visit_concepts.concept_number,
        cast(extract(month from visits.visit_start_date) as int) as visit_month,
        case when visits.visit_order < visits.visit_count then 1 end as has_next,
        case
            when
                lead(visit_concepts.visit_number) over (
                    partition by
                        visit_concepts.person_number, visit_concepts.concept_number
                    order by visit_concepts.visit_number
                ) = visit_concepts.visit_number + 1
                then 1
        end as is_repeated
    from visit_concepts
    inner join visits on visit_concepts.visit_number = visits.visit_number

),

conditions as (

    select
        concept_id,
        concept_number,
        count(*) as occurrences,
        count(is_repeated) / cast(nullif(count(has_next), 0) as double)
            as repeat_share
    from told
    group by 1, 2

),

months as (

    select
        concept_id,
        visit_month,
        count(*) as occurrences,
        row_number() over (
            partition by concept_id
            order by count(*) desc, visit_month asc
        ) as month_rank
    from told
    group by 1, 2

),

-- Pearson's chi-squared against equal months, per occurrence
seasons as (

    select
        concept_id,
        12 * sum(occurrences * occurrences)
        / (cast(sum(occurrences) as double) * sum(occurrences)) - 1 as contrast,
        max(case when month_rank = 1 then visit_month end) as peak_month
    from months
    group by 1

),

ranked as (

    select
        conditions.concept_id,
        conditions.concept_number,
        conditions.occurrences,
        conditions.repeat_share,
        seasons.peak_month,
        -- less what chance alone makes of eleven degrees of freedom
        seasons.contrast - 11.0 / conditions.occurrences as seasonality
    from conditions
    inner join seasons on conditions.concept_id = seasons.concept_id
    where
        conditions.occurrences >= 100
        and conditions.repeat_share <= 0.2

),

final as (

    select
        cast(
            row_number() over (order by seasonality desc, concept_id asc) as int
        ) as season_rank,
        *
    from ranked
    where seasonality > 0
    order by season_rank
    limit 10

)

select * from final
