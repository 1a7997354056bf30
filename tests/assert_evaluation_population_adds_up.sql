-- Each person of a cohort is counted once, shares lie between 0 and 1, and each visit
-- is in one place.
with

persons as (

    select
        cohort,
        count(*) as row_count
    from {{ ref('population_persons') }}
    group by 1

),

demographics as (

    select
        cohort,
        sum(persons) as row_count
    from {{ ref('demographics') }}
    group by 1

),

histograms as (

    select
        cohort,
        sum(frequency) as row_count
    from {{ ref('histograms') }}
    where measure = 'visits_per_person'
    group by 1

),

final as (

    select
        persons.cohort,
        'persons' as counted
    from persons
    left join demographics on persons.cohort = demographics.cohort
    left join histograms on persons.cohort = histograms.cohort
    where
        persons.row_count <> coalesce(demographics.row_count, 0)
        or persons.row_count <> coalesce(histograms.row_count, 0)

    union all

    select cohort, 'share' as counted
    from {{ ref('prevalence') }}
    where share <= 0 or share > 1

    union all

    select cohort, 'share of a stratum' as counted
    from {{ ref('prevalence_by_stratum') }}
    where share <= 0 or share > 1

    union all

    select cohort, 'visits' as counted
    from {{ ref('visit_types') }}
    group by 1
    having abs(sum(share) - 1) > 1e-9

)

select * from final
