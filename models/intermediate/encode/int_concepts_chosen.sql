-- One row per event table and concept of the source that is written as another one: a
-- drug as its ingredient, a concept of too few persons as its nearest ancestor that has
-- enough; NULL where there is none, and the rows are left out. Empty unless asked for.
{%- set least_persons = var('min_num_of_patients') | int %}
{%- set with_drug_rollup = var('with_drug_rollup') %}
with

events as (

    select distinct
        source_table,
        person_id,
        coalesce(concept_id, 0) as concept_id
    from {{ ref('int_events_united') }}
    where
        coalesce(concept_id, 0) <> 0
        {%- if not least_persons and not with_drug_rollup %}
        -- nothing was asked for
            and 1 = 0
        {%- endif %}

),

ancestors as (

    select
        ancestor_concept_id,
        descendant_concept_id,
        min(min_levels_of_separation) as levels
    from {{ ref('stg_omop__concept_ancestor') }}
    group by 1, 2

),

ingredient_concepts as (

    select distinct concept_id from {{ ref('stg_omop__concept') }}
    where concept_class_id = 'Ingredient'

),

-- a product of several ingredients stays what it is: a row never becomes two
ingredients as (

    select
        ancestors.descendant_concept_id as concept_id,
        min(ancestors.ancestor_concept_id) as ingredient_concept_id
    from ancestors
    inner join ingredient_concepts
        on ancestors.ancestor_concept_id = ingredient_concepts.concept_id
    where {{ 'true' if with_drug_rollup else 'false' }}
    group by 1
    having count(*) = 1

),

rolled_events as (

    select
        events.source_table,
        events.person_id,
        events.concept_id as source_concept_id,
        coalesce(ingredients.ingredient_concept_id, events.concept_id) as concept_id
    from events
    left join ingredients
        on
            events.concept_id = ingredients.concept_id
            and events.source_table = 'drug_exposure'

),

concept_persons as (

    select distinct source_table, concept_id, person_id
    from rolled_events

),

rare_concepts as (

    select source_table, concept_id
    from concept_persons
    group by 1, 2
    having count(*) < {{ least_persons }}

),

rare_persons as (

    select concept_persons.*
    from concept_persons
    inner join rare_concepts
        on
            concept_persons.source_table = rare_concepts.source_table
            and concept_persons.concept_id = rare_concepts.concept_id

),

-- persons that an ancestor has or would have: its own, and those of rare descendants
ancestor_persons as (

    select
        rare_persons.source_table,
        ancestors.ancestor_concept_id,
        rare_persons.person_id
    from rare_persons
    inner join ancestors on rare_persons.concept_id = ancestors.descendant_concept_id
    union
    select source_table, concept_id as ancestor_concept_id, person_id
    from concept_persons

),

common_ancestors as (

    select source_table, ancestor_concept_id
    from ancestor_persons
    group by 1, 2
    having count(*) >= {{ least_persons }}

),

ranked as (

    select
        rare_concepts.source_table,
        rare_concepts.concept_id,
        common_ancestors.ancestor_concept_id,
        row_number() over (
            partition by rare_concepts.source_table, rare_concepts.concept_id
            order by ancestors.levels, common_ancestors.ancestor_concept_id
        ) as nearness
    from rare_concepts
    inner join ancestors on rare_concepts.concept_id = ancestors.descendant_concept_id
    inner join common_ancestors
        on
            rare_concepts.source_table = common_ancestors.source_table
            and ancestors.ancestor_concept_id = common_ancestors.ancestor_concept_id

),

written_persons as (

    select distinct
        concept_persons.source_table,
        coalesce(
            ranked.ancestor_concept_id, concept_persons.concept_id
        ) as concept_id,
        concept_persons.person_id
    from concept_persons
    left join ranked
        on
            concept_persons.source_table = ranked.source_table
            and concept_persons.concept_id = ranked.concept_id
            and ranked.nearness = 1

),

-- of an ancestor's rare descendants some may have found a nearer one: count again
common_concepts as (

    select source_table, concept_id
    from written_persons
    group by 1, 2
    having count(*) >= {{ least_persons }}

),

source_concepts as (

    select distinct source_table, source_concept_id, concept_id
    from rolled_events

),

final as (

    select
        source_concepts.source_table,
        source_concepts.source_concept_id as concept_id,
        common_concepts.concept_id as written_concept_id
    from source_concepts
    left join ranked
        on
            source_concepts.source_table = ranked.source_table
            and source_concepts.concept_id = ranked.concept_id
            and ranked.nearness = 1
    left join common_concepts
        on
            source_concepts.source_table = common_concepts.source_table
            and coalesce(ranked.ancestor_concept_id, source_concepts.concept_id)
            = common_concepts.concept_id
    where
        common_concepts.concept_id is null
        or common_concepts.concept_id <> source_concepts.source_concept_id

){%- if has_before() %},

-- roll-ups stay as they were; a concept is decided when it is first met
met as (

    select source_table, concept_id from {{ before('int_concepts_chosen') }}
    union
    select source_table, concept_id from {{ before('int_event_tokens') }}

),

frozen as (

    select * from {{ before('int_concepts_chosen') }}
    union all by name
    select final.*
    from final
    left join met
        on final.source_table = met.source_table and final.concept_id = met.concept_id
    where met.concept_id is null

)

select * from frozen
{%- else %}

    select * from final
{%- endif %}
